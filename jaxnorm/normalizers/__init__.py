"""Other normalizers as pure functions, one file per method; channels last."""
