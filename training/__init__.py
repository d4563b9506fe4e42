"""How every weight in `models/` was made: one resumable command each. Needs the `train` extra."""
