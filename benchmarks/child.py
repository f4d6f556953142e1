"""A measurement in a process of its own: its memory is its own, and nothing was compiled before it."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MARK = "FOUND"


def run(
    module: str, flags: Sequence[str], variables: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What ``python -m module flags`` reported, and the lines of its standard error.

    A process that failed is a row too: {"failed": the last line it said}.
    """
    environment = {**os.environ, **(variables or {})}
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    said = done.stderr.splitlines()
    if done.returncode:
        return {"failed": (said or [f"status {done.returncode}"])[-1][:200]}, said
    return found(done.stdout), said


def found(said: str) -> dict[str, Any]:
    """What a child reported, from its standard output."""
    return json.loads(said.split(_MARK)[1])


def report(what: Mapping[str, Any]) -> None:
    """Called in the child, once."""
    print(_MARK + json.dumps(what))


def peak_bytes(process: int | str = "self") -> int:
    """The largest memory of a process so far; of another one 0 once it has ended.

    ``getrusage`` would say that of the process which started it, where that is more.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
    except (OSError, TypeError):  # not Linux, or ended
        if process != "self":
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
