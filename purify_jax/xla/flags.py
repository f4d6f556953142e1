"""The one flag of XLA that this library sets: which of its kernels convolve on a CPU.

From jaxlib 0.9 on, XLA's CPU backend hands convolutions and matrix products to YNNPACK. Without AVX-512 its
kernels reach half of the processor's peak where Eigen's reach nearly all of it (docs/performance.md), so
there it is turned off, in the environment variable XLA_FLAGS and so for child processes too. A value that
the user gave stays, and PURIFY_JAX_XLA_FLAGS=off sets nothing. XLA reads the variable when it first
compiles: import this library before that.
"""

import importlib.util
import os
import platform
import re
from pathlib import Path

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
#: XLA ends a process that names a flag it does not know: only these versions, which were looked at.
_KNOWN_BY = ("0.9.", "0.10.")


def chosen(given: str, jaxlib: str, machine: str, features: str) -> str:
    """What XLA_FLAGS should be: ``given``, and the flag where it is known and of use.

    jaxlib: its version; machine: as ``platform.machine`` says; features: the processor's, as Linux does.

    >>> chosen("", "0.10.2", "x86_64", "fma avx avx2")
    '--xla_cpu_experimental_ynn_fusion_type='
    >>> chosen("", "0.10.2", "x86_64", "fma avx avx2 avx512f"), chosen("", "0.6.2", "x86_64", "avx2")
    ('', '')
    """
    wanted = jaxlib.startswith(_KNOWN_BY) and machine in ("x86_64", "AMD64")
    known = features.split()
    if FLAG in given or not wanted or "avx2" not in known or "avx512f" in known:
        return given
    return f"{given} {FLAG}=".strip()


def set_flags() -> None:
    """Sets XLA_FLAGS as :func:`chosen` says; reads two small files, and does not import JAX."""
    if os.environ.get("PURIFY_JAX_XLA_FLAGS") == "off":
        return
    given = os.environ.get("XLA_FLAGS", "")
    flags = chosen(given, _jaxlib(), platform.machine(), _features())
    if flags != given:
        os.environ["XLA_FLAGS"] = flags


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
