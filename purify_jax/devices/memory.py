"""Memory: what a program takes, before it is compiled and after, and what its device has free."""

import math
import os
import re
from pathlib import Path
from typing import Any

import jax

from purify_jax.checks import InputError
from purify_jax.passes import programs

#: Memory that may be taken, for those who know better: "200MB", "12GB", or "unlimited".
VARIABLE = "PURIFY_JAX_MEMORY"
#: Of what is free, the part that may be taken: other programs, and XLA's own, need some too.
SHARE = 0.8
_UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def budget(devices: list[Any]) -> float:
    """Bytes that a program may take on each of this process's ``devices``; infinite if unknown.

    What :data:`VARIABLE` says, else :data:`SHARE` of what is free: of the device's memory where the
    device tells it, on a CPU of the machine's and of the control groups' that the process is in.
    Raises InputError for a variable that is no amount.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return amount(given)
    told = [device.memory_stats() for device in devices if device.platform != "cpu"]
    limits = [s["bytes_limit"] - s["bytes_in_use"] for s in told if s and "bytes_limit" in s]
    if limits:
        return SHARE * min(limits)
    if any(device.platform != "cpu" for device in devices):
        return math.inf
    return SHARE * host_free() / max(len(devices), 1)


def amount(text: str) -> float:
    """Bytes of "200MB", "1.5 GB", "4096" or "unlimited"; InputError for anything else.

    >>> amount("1.5 GB"), amount("unlimited")
    (1500000000.0, inf)
    """
    if text.strip().lower() == "unlimited":
        return math.inf
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", text, re.IGNORECASE | re.ASCII)
    unit = (found[2].upper().removesuffix("B") + "B").removeprefix("B") if found else ""
    if found is None or float(found[1]) <= 0:
        raise InputError(f"{VARIABLE}: got {text!r}, expected 200MB, 12GB, ... or unlimited")
    return float(found[1]) * _UNITS[unit]


def host_free(root: Path = Path("/")) -> float:
    """Bytes that this process may still take of the machine's memory; infinite where nothing tells.

    The least of what Linux calls available and what the limits of the process's control groups leave
    (both versions; file caches of a group are free, as the kernel drops them). ``root`` is for tests.
    """
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    free = float(found[1]) * 1024 if found else math.inf
    for folder in _groups(root):
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            most, used = _read(folder / limit).strip(), _read(folder / usage).strip()
            if most.isdigit() and used.isdigit():
                cached = re.search(r"^inactive_file (\d+)", _read(folder / "memory.stat"), re.M)
                kept = int(used) - (int(cached[1]) if cached else 0)
                free = min(free, max(float(most) - kept, 0.0))
    return free


def _groups(root: Path) -> list[Path]:
    """The folders of the control groups that this process is in, with all that are above them."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        inside = Path(place.lstrip("/"))
        found += [base / inside, *(base / above for above in inside.parents), base]
    return list(dict.fromkeys(found))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def traced_bytes(program: Any) -> int:
    """Bytes of every intermediate result of a traced program (a jaxpr), a loop's body counted once.

    A compiled program holds a part of them at a time. Where even all of them fit there is nothing to
    choose, and this costs milliseconds, where compiling costs minutes.
    """
    total = 0
    for equation in program.eqns:
        total += sum(_bytes(variable.aval) for variable in equation.outvars)
        total += sum(traced_bytes(inner) for inner in programs(equation.params))
    return total


def _bytes(value: Any) -> int:
    itemsize = getattr(getattr(value, "dtype", None), "itemsize", 0)
    return math.prod(getattr(value, "shape", ())) * itemsize


def compiled_bytes(compiled: Any) -> int:
    """Temporary memory and results of a compiled program, on each device; 0 if the backend is silent."""
    memory = compiled.memory_analysis()
    return 0 if memory is None else memory.temp_size_in_bytes + memory.output_size_in_bytes


def ran_out(error: BaseException) -> bool:
    """Whether an error says that a device had no memory left."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
