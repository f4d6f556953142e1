"""How a run is executed: one value for everything that changes no result."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from purify_jax.checks import InputError, check_count


@dataclasses.dataclass(frozen=True)
class Execution:
    """How evaluation, certification, detection, corruptions and training are executed.

    Results do not depend on it, but for rounding.

    batch_size: images side by side; None for the default of what is run. The last batch is padded.
    mesh: devices to split each batch over (``sharding.data_mesh()``); None for all devices.
    shard_parameters: split large parameters over the devices too, for those that no device holds.
    block: images that go through all attacks before the next ones start; None for all of them.
    shard: (i, n): only blocks i, i + n, i + 2n, ...; the records are those of the whole run.
    workdir: a folder for records or checkpoints; a run that was killed continues there. None keeps
      results in memory only.
    progress: show progress bars on standard error.

    Raises InputError for a value outside its range.
    """

    batch_size: int | None = None
    mesh: Mesh | None = None
    shard_parameters: bool = False
    block: int | None = None
    shard: tuple[int, int] = (0, 1)
    workdir: str | Path | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "block"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        index, shards = self.shard
        check_count("shards", shards)
        check_count("shard", index, 0)
        if index >= shards:
            raise InputError(
                f"shard: got {index}/{shards}, expected 0/{shards} to {shards - 1}/{shards}"
            )

    def refuse(self, task: str, *names: str) -> None:
        """Raises InputError if one of the fields ``names``, which ``task`` has no use for, is set."""
        defaults = Execution()
        for name in names:
            if getattr(self, name) != getattr(defaults, name):
                raise InputError(
                    f"{name}: got {getattr(self, name)!r}, expected none: {task} has no use for it"
                )
