"""One file per method, with its `FAMILIES`."""
