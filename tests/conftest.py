"""Eight CPU devices in every test process, so that sharding is tested without accelerators."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
