"""One evaluation in several processes: each writes the records of its blocks, a merge joins them.

A scheduler's job array runs the same command with --shard=0/4 to --shard=3/4; each is started again
alone if it was killed. The same command with --merge then puts the files together, byte for byte what
one process would have written, and goes on with what needs all records.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental import multihost_utils

from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError, check_count
from purify_jax.evaluation.attacked import shard_blocks

FLAGS = flags.FLAGS


def define() -> None:
    """--block, --shard and --merge."""
    flags.DEFINE_integer(
        "block", None, "Images that pass all attacks before the next ones start (default: all)."
    )
    flags.DEFINE_string("shard", None, "I/N: only every N-th block, from block I; then --merge.")
    flags.DEFINE_bool("merge", False, "Join the records of all shards and finish.")


def chosen() -> tuple[int, int]:
    """(i, n) of --shard, or of this process among those of --coordinator; (0, 1) for one process."""
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


def folder(workdir: Path, shard: tuple[int, int]) -> Path:
    """Where a shard writes its records; the work directory itself for one process."""
    index, count = shard
    return workdir if count == 1 else workdir / f"shard-{index}-of-{count}"


def is_last_step_mine() -> bool:
    """Waits until all processes have written their records; process 0 goes on, the others wait for it."""
    multihost_utils.sync_global_devices("records are written")
    if jax.process_index() == 0:
        return True
    finish()
    return False


def finish() -> None:
    """Lets the processes that wait for process 0 end."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the merge is done")


def merge(workdir: Path, label: str) -> Path:
    """Joins the shards' files of one model into ``records_<label>.jsonl``; they stay where they are.

    Raises InputError if there are none, one is missing or unfinished, they belong to different
    evaluations, or the joined file is there and differs.
    """
    name = f"records_{label}.jsonl"
    pattern = re.compile(r"shard-(\d+)-of-(\d+)")
    places = {
        m: p / name for p in sorted(workdir.glob("shard-*")) if (m := pattern.fullmatch(p.name))
    }
    found = {m: path for m, path in places.items() if path.is_file()}
    if not found:
        raise InputError(
            f"merge: {workdir} has no shards of {label!r}, expected --shard runs first"
        )
    counts = sorted({int(m[2]) for m in found})
    if len(counts) > 1:
        raise InputError(
            f"merge: {workdir} has shards of {counts} in all, expected one number of them"
        )
    files = {int(m[1]): path for m, path in found.items()}
    missing = [f"{i}/{counts[0]}" for i in range(counts[0]) if i not in files]
    if missing:
        raise InputError(
            f"merge: shards {', '.join(missing)} of {label!r} are missing, expected all"
        )
    header: dict[str, Any] = {}
    bodies: dict[int, list[bytes]] = {}
    for index, path in sorted(files.items()):
        head, bodies[index] = _read(path)
        shard = head.pop("shard", None)
        if shard != [index, counts[0]] or (header and head != header):
            raise InputError(
                f"merge: {path.parent.name} belongs to another evaluation ({_first_difference(header, head)}), "
                "expected shards of one"
            )
        header = head
    parts: dict[int, list[bytes]] = {}
    for index, path in sorted(files.items()):
        for block in shard_blocks(header["images"], header["block"], (index, counts[0])):
            taken = list(_take(bodies[index], block, ["clean", *header["attacks"]], path))
            parts[block.start] = taken
    first = (json.dumps({"header": header}, sort_keys=True) + "\n").encode()
    content = first + b"".join(line for start in sorted(parts) for line in parts[start])
    path = workdir / name
    if path.exists() and path.read_bytes() != content:
        raise InputError(
            f"merge: {path.name} is there and differs, expected a folder of shards alone"
        )
    write_atomically(path, content)
    return path


def _read(path: Path) -> tuple[dict[str, Any], list[bytes]]:
    lines = path.read_bytes().splitlines(keepends=True)
    try:
        head = json.loads(lines[0])["header"]
        check_count("images", head["images"])
        names = head["attacks"]
        if not isinstance(names, list):
            raise TypeError("attacks")
        return head, lines[1:]
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"merge: {path.parent.name} has no header of protocol 2 ({error!r})"
        ) from error


def _take(lines: list[bytes], block: range, attacks: list[str], path: Path) -> Iterator[bytes]:
    """The next block's lines, in the order in which one process writes them."""
    wanted = {(name, index) for name in attacks for index in block}
    while wanted:
        try:
            line = lines.pop(0)
            record = json.loads(line)
            wanted.remove((record["attack"], record["index"]))
        except (IndexError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"merge: {path.parent.name} is not finished, expected it to be run again to its end"
            ) from error
        yield line


def _first_difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            return f"{key}: {a.get(key)!r} and {b.get(key)!r}"
    return "its shard"
