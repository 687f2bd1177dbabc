"""Other normalizers as functions and modules, one file per method; channels in dimension 1."""
