"""Compiling before the first step, with a line that says so: what it took and what it made."""

import time
from collections.abc import Callable
from typing import Any

#: Called with a line of text: that compiling begins, and what came of it.
Announce = Callable[[str], None]


def ahead_of_time(function: Any, *arguments: Any, announce: Announce) -> None:
    """Compiles a jitted function for these arguments, whose next call then starts at once.

    ``announce`` gets "compiling ..." before and, after, the seconds, the floating-point operations
    (of a loop: of one turn, which is how XLA counts) and the temporary memory of the compiled
    program. Nothing is run and nothing donated. A function without ``lower`` is left alone.
    """
    if not hasattr(function, "lower"):
        return
    announce("compiling ...")
    started = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    announce(f"compiled in {time.perf_counter() - started:.1f} s{figures(compiled)}")


def figures(compiled: Any) -> str:
    """FLOPs and temporary memory of a compiled program, as far as the backend tells them."""
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    parts = []
    if isinstance(costs, dict) and costs.get("flops", 0) > 0:
        parts.append(f"{costs['flops'] / 1e9:.3g} GFLOP a step")
    if memory is not None:
        parts.append(f"{memory.temp_size_in_bytes / 1e6:.3g} MB of temporary memory")
    return "".join(f"; {part}" for part in parts)
