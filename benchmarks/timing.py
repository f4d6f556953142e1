"""Alternating timings, the device's measured peak, and a count of compilations."""

import statistics
import sys
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp


def alternate(
    functions: Mapping[str, Callable[[], Any]], repeats: int, may_fail: Container[str] = ()
) -> dict[str, list[float]]:
    """Seconds of ``repeats`` calls of each function, in turns; a first round warms up and compiles.

    Every function must return only when its work is done. One of ``may_fail`` whose first call
    raises a RuntimeError is left out, with a line on standard error.
    """
    times: dict[str, list[float]] = {}
    for name, function in functions.items():
        try:
            function()
        except RuntimeError as error:
            if name not in may_fail:
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"left out: {name}: {reason}", file=sys.stderr, flush=True)
        else:
            times[name] = []
    for _ in range(repeats):
        for name, seconds in times.items():
            started = time.perf_counter()
            functions[name]()
            seconds.append(time.perf_counter() - started)
    return times


def summary(times: list[float], work: float, unit: str) -> dict[str, Any]:
    """Median seconds, and work per second at the median, the slowest and the fastest round."""
    median = statistics.median(times)
    return {
        "seconds": median,
        unit: work / median,
        f"{unit}_range": [work / max(times), work / min(times)],
    }


def matmul_peak(repeats: int = 5, dtype: str = "float32") -> float:
    """The best measured FLOP/s of a square matrix product, at JAX's default precision."""
    sizes = (1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)
    best = 0.0
    for size in sizes:
        a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        multiply = jax.jit(jnp.matmul)
        # Several products a call, so that the dispatch does not count.
        chain = jax.jit(lambda a: jax.lax.fori_loop(0, 4, lambda _, x: multiply(a, x) / size, a))
        (times,) = alternate({"": lambda: jax.block_until_ready(chain(a))}, repeats).values()
        best = max(best, 4 * 2 * size**3 / min(times))
    return best


@contextmanager
def count_compilations() -> Iterator[list[str]]:
    """Collects the names of programs compiled inside the context."""
    compiled: list[str] = []

    def listen(event: str, seconds: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(str(details.get("fun_name", event)))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
