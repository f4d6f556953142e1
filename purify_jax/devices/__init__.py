"""Devices and processes: the only code that knows of them."""

# The binaries write pj.devices.progress; what is public of this room is pj.sharding.
from purify_jax.devices import (  # noqa: F401
    batches,
    compiling,
    memory,
    progress,
    sharding,
)
