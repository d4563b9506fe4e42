"""The operators' console: a page to look at faces, and to pull them in full quality."""
