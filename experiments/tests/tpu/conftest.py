"""Devices to shard over."""

import jax

# Before JAX starts, and as many as the other tests have, with which these may share a process.
jax.config.update("jax_num_cpu_devices", 8)
