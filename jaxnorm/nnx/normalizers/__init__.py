"""Other normalizers as layers of Flax nnx, one file per method; the texts are those of linen."""

from jaxnorm.nnx.normalizers.replace import replace as replace
