"""The two flags of XLA that this library sets on CPUs, where docs/performance.md found them of use.

Which kernels convolve: from jaxlib 0.9 on, XLA's CPU backend hands convolutions and matrix products to YNNPACK.
Eigen's were 1.1 to 2.1 times as fast without AVX-512, and with it 1.2 to 1.5 times as fast for small networks, where a
large one loses up to 8% of a forward pass: YNNPACK is turned off. How far LLVM optimises: at level 1 the programs
that were measured run as fast as at the default, 3, and compile in 45 to 95% of the time. GPUs compile by that level
too: it is set only where JAX has no plugin for one.

They are set in the environment variable XLA_FLAGS and so for child processes too. A value that the user gave
stays, and PURIFY_JAX_XLA_FLAGS=off sets nothing. XLA reads the variable when it first compiles: import this
library before that.
"""

import importlib.util
import os
import platform
import re
from pathlib import Path

KERNELS = "--xla_cpu_experimental_ynn_fusion_type"
LEVEL = "--xla_backend_optimization_level"
#: XLA ends a process that names a flag it does not know: only versions whose library holds its name.
_KNOW_KERNELS = ("0.9.", "0.10.")
_KNOW_LEVEL = ("0.6.", "0.7.", "0.8.", *_KNOW_KERNELS)


def chosen(given: str, jaxlib: str, machine: str, features: str, cpu_only: bool) -> str:
    """What XLA_FLAGS should be: ``given``, and those of the two that are known and of use.

    jaxlib: its version; machine: as ``platform.machine`` says; features: the processor's, as Linux does;
    cpu_only: whether JAX can see nothing but CPUs.

    >>> chosen("", "0.10.2", "x86_64", "fma avx avx2", False)
    '--xla_cpu_experimental_ynn_fusion_type='
    >>> chosen("", "0.10.2", "x86_64", "sse4_2", True), chosen("", "0.5.3", "x86_64", "avx2", True)
    ('--xla_backend_optimization_level=1', '')
    """
    intel = machine in ("x86_64", "AMD64") and "avx2" in features.split()
    eigen = intel and jaxlib.startswith(_KNOW_KERNELS)
    wanted = [(KERNELS, "", eigen), (LEVEL, "1", cpu_only and jaxlib.startswith(_KNOW_LEVEL))]
    new = [f"{name}={value}" for name, value, of_use in wanted if of_use and name not in given]
    return " ".join([given, *new]).strip() if new else given


def set_flags() -> None:
    """Sets XLA_FLAGS as :func:`chosen` says; reads two small files, and does not import JAX."""
    if os.environ.get("PURIFY_JAX_XLA_FLAGS") == "off":
        return
    given = os.environ.get("XLA_FLAGS", "")
    flags = chosen(given, _jaxlib(), platform.machine(), _features(), _cpu_only())
    if flags != given:
        os.environ["XLA_FLAGS"] = flags


def _cpu_only() -> bool:
    """Whether JAX is told to use CPUs, or has no plugin for anything else and no libtpu."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return True
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def _jaxlib() -> str:
    found = importlib.util.find_spec("jaxlib")
    for folder in (found.submodule_search_locations or []) if found else []:
        text = _read(Path(folder) / "version.py")
        if version := re.search(r"^_version = ['\"]([^'\"]+)", text, re.MULTILINE):
            return version[1]
    return ""


def _features() -> str:
    found = re.search(r"^flags\s*:(.*)", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1] if found else ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
