"""Other normalizers as layers of Flax linen, one file per method."""
