"""Compiling before the first step, with a line that tells what it cost."""

import time
from collections.abc import Callable

#: Called with a line of text when compiling begins, and with another when it ends.
Announce = Callable[[str], None]


def ahead_of_time(function: Callable, *arguments: object, announce: Announce) -> None:
    """Compiles a jitted function for these arguments, whose next call then starts at once.

    ``announce`` gets "compiling ..." before. After, it gets the seconds, the floating-point operations and
    the temporary memory of the compiled program; XLA counts one turn of a loop. Nothing is run and no
    argument is donated. A function without ``lower`` is not compiled.
    """
    if not hasattr(function, "lower"):
        return
    announce("compiling ...")
    started = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    parts = [f"compiled in {time.perf_counter() - started:.1f} s"]
    counted, memory = compiled.cost_analysis(), compiled.memory_analysis()
    if isinstance(counted, dict) and counted.get("flops", 0) > 0:
        parts.append(f"{counted['flops'] / 1e9:.3g} GFLOP a step")
    if memory is not None:
        parts.append(f"{memory.temp_size_in_bytes / 1e6:.3g} MB of temporary memory")
    announce("; ".join(parts))
