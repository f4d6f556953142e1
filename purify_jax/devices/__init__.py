"""Devices, processes and memory: how a computation is executed."""

# The binaries use pj.devices.progress; the public module of this package is pj.sharding.
from purify_jax.devices import (  # noqa: F401
    batches,
    compiling,
    memory,
    progress,
    sharding,
)
