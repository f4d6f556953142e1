"""Versions of what the numbers depend on, and the device they were computed on."""

import importlib.metadata
import platform

import jax

PACKAGES = ("purify_jax", "jax", "jaxlib", "flax", "optax", "numpy")


def versions() -> dict[str, str]:
    """name → version of the packages behind a result, of Python, and the kind of device."""
    found = {package: _version(package) for package in PACKAGES}
    return {**found, "python": platform.python_version(), "device": jax.devices()[0].device_kind}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
