"""Other normalizers as layers of Flax nnx, one file per method; the texts are those of linen."""
