"""Memory: of exact gradients, and of work that is divided because it would take too much."""

from benchmarks.memory.gradients import measure

__all__ = ["measure"]
