"""Generated from `proto/sfic/v1` by `make proto`; nothing here is written by hand."""
