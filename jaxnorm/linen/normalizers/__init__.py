"""Other normalizers as layers of Flax linen, one file per method."""

from jaxnorm.linen.normalizers.replace import replace as replace
