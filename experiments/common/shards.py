"""One evaluation in several processes: each does its units of work, a merge joins what they wrote.

A scheduler's job array runs the same command with --shard=0/4 to --shard=3/4; each is started again
alone if it was killed. The same command with --merge then puts the files together, byte for byte what
one process would have written, and goes on with what needs all of them. Processes that work together
(--coordinator) do all that by themselves.

Unit u of n shards' work is shard u % n's. A unit is what is written together: for record files a list of
(attack, image), for others a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

import purify_jax as pj
from experiments.common.workdirs import claim_workdir
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

FLAGS = flags.FLAGS
#: (attack, image) of the records that are written together.
Records = Sequence[tuple[str, int]]
Found = TypeVar("Found")


def define() -> None:
    """--shard and --merge."""
    flags.DEFINE_string("shard", None, "I/N: every N-th part, from part I; then --merge.")
    flags.DEFINE_bool("merge", False, "Join what all shards wrote and finish.")


def chosen() -> tuple[int, int]:
    """(i, n) of --shard, or of this process among those of --coordinator; (0, 1) for one process."""
    import jax  # here and below: it takes a second, and flags are read without it

    text = FLAGS.shard
    if text is None:
        return jax.process_index(), jax.process_count()
    if jax.process_count() > 1:
        raise InputError("shard: got it beside several processes, expected one or the other")
    if FLAGS.merge:
        raise InputError("merge: got --shard beside it, expected one or the other")
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(f"shard: got {text!r}, expected I/N with 0 <= I < N, such as 0/4")
    return int(found[1]), int(found[2])


def mesh() -> Mesh | None:
    """This process's own devices if there are several: each of several processes works by itself."""
    import jax

    return pj.sharding.data_mesh(jax.local_devices()) if jax.device_count() > 1 else None


def execution(workdir: str | Path | None = None, shard: tuple[int, int] = (0, 1)) -> pj.Execution:
    """How the flags say that a command is executed."""
    return pj.Execution(
        batch_size=FLAGS.batch_size,
        mesh=mesh(),
        shard=shard,
        workdir=workdir,
        progress=FLAGS.progress,
    )


def run(
    work: Callable[[Path, tuple[int, int]], Found],
    join: Callable[[Path], Any],
    write: Callable[[Path, Found], None],
    settings: Mapping[str, Any],
    *,
    models: Mapping[str, pj.defense.Defense],
    data: pj.data.Dataset,
    name: str = "settings.json",
) -> None:
    """Does this process's share of the work, and writes the results once all shares exist.

    Args:
      work: (folder, (i, n)) → the results of shard i of n. It continues from the files in its folder. A
        shard has a folder of its own inside ``--workdir``.
      join: brings the shards' files to a work directory.
      write: (work directory, results) → the report. Called in one process, and not by a shard.
      settings, models, data: what the results depend on.
      name: the file of the work directory that keeps them.
    """
    import jax
    from jax.experimental import multihost_utils

    made_with = pj.evaluation.identity(models=models, data=data)
    shard, settings = chosen(), {**settings, "made_with": made_with}
    workdir = claim_workdir(_folder(Path(FLAGS.workdir), shard), settings, name)
    if FLAGS.merge:
        join(workdir)
    found = work(workdir, shard)
    if FLAGS.shard is not None and shard != (0, 1):
        print(f"shard {FLAGS.shard}: written to {workdir}; --merge joins the shards")
        return
    several = jax.process_count() > 1
    if several:
        multihost_utils.sync_global_devices("every share is written")
    if jax.process_index() == 0:
        if several:
            workdir = claim_workdir(FLAGS.workdir, settings, name)
            join(workdir)
            found = work(workdir, (0, 1))
        write(workdir, found)
    if several:
        multihost_utils.sync_global_devices("the merge is done")


def _folder(workdir: Path, shard: tuple[int, int]) -> Path:
    index, count = shard
    return workdir if count == 1 else workdir / f"shard-{index}-of-{count}"


def merge(
    workdir: Path, name: str, units: Callable[[Mapping[str, Any]], Sequence[Records]]
) -> Path:
    """Joins the shards' record files ``name``; they stay where they are. ``units(header)`` lists the work.

    Raises InputError if there are none, one is missing or unfinished, they belong to different
    evaluations, or the joined file is there and differs.
    """
    from purify_jax.evaluation.identity import difference
    from purify_jax.evaluation.records import first_line

    folders = _shards(workdir, name)
    count = len(folders)
    header: dict[str, Any] = {}
    bodies = []
    for index, folder in enumerate(folders):
        head, lines = _read(folder / name)
        shard = head.pop("shard", None)
        if shard != [index, count] or (header and head != header):
            differs = difference(header, head) or f"shard: {shard} there"
            raise InputError(
                f"merge: {folder.name} belongs to another evaluation ({differs}), expected shards of one"
            )
        header = head
        bodies.append(lines)
    try:
        listed = units(header)
    except (LookupError, TypeError) as error:
        raise InputError(f"merge: {folders[0].name} has no header ({error!r})") from error
    taken = [
        _take(bodies[u % count], records, folders[u % count].name)
        for u, records in enumerate(listed)
    ]
    return _write(workdir / name, first_line(header) + b"".join(taken))


def gather(workdir: Path, units: Sequence[Sequence[str]], settings: str = "settings.json") -> None:
    """Brings the shards' files to ``workdir``: of each unit the files of these names.

    Raises InputError as :func:`merge`.
    """
    folders = _shards(workdir, settings)
    for folder in folders:
        if (folder / settings).read_bytes() != (workdir / settings).read_bytes():
            raise InputError(
                f"merge: {folder.name} belongs to another evaluation, expected shards of one"
            )
    for u, names in enumerate(units):
        folder = folders[u % len(folders)]
        for name in names:
            if not (folder / name).is_file():
                raise InputError(
                    f"merge: {folder.name} is not finished ({name} is missing), expected it to be run again "
                    "to its end"
                )
            _write(workdir / name, (folder / name).read_bytes())


def _shards(workdir: Path, name: str) -> list[Path]:
    """The folders of shards 0 to n − 1, all of which have a file of this name."""
    pattern = re.compile(r"shard-(\d+)-of-(\d+)")
    places = {m: p for p in sorted(workdir.glob("shard-*")) if (m := pattern.fullmatch(p.name))}
    found = {m: folder for m, folder in places.items() if (folder / name).is_file()}
    if not found:
        raise InputError(f"merge: {workdir} has no shards with {name}, expected --shard runs first")
    counts = sorted({int(m[2]) for m in found})
    if len(counts) > 1:
        raise InputError(
            f"merge: {workdir} has shards of {counts} in all, expected one number of them"
        )
    folders = {int(m[1]): folder for m, folder in found.items()}
    missing = [f"{i}/{counts[0]}" for i in range(counts[0]) if i not in folders]
    if missing:
        raise InputError(f"merge: shards {', '.join(missing)} lack {name}, expected all")
    return [folders[i] for i in range(counts[0])]


def _write(path: Path, content: bytes) -> Path:
    if path.exists() and path.read_bytes() != content:
        raise InputError(
            f"merge: {path.name} is there and differs, expected a folder of shards alone"
        )
    write_atomically(path, content)
    return path


def _read(path: Path) -> tuple[dict[str, Any], list[bytes]]:
    from purify_jax.evaluation.records import parse_first_line

    lines = path.read_bytes().splitlines(keepends=True)
    try:
        return parse_first_line(lines[0]), lines[1:]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"merge: {path.parent.name} has no header ({error!r})") from error


def _take(lines: list[bytes], records: Records, shard: str) -> bytes:
    """The next unit's lines, in the order in which one process writes them."""
    wanted = set(records)
    taken = []
    while wanted:
        try:
            taken.append(lines.pop(0))
            record = json.loads(taken[-1])
            wanted.remove((record["attack"], record["index"]))
        except (IndexError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"merge: {shard} is not finished, expected it to be run again to its end"
            ) from error
    return b"".join(taken)
