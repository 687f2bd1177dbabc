"""The studies: each settles one knob of `jaxnorm.Rule`."""
