"""Per-image records as JSON lines: flushed as they come, continued after a kill, summed up."""

import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purify_jax.checks import InputError
from purify_jax.devices import sharding
from purify_jax.devices.execution import Execution
from purify_jax.evaluation.identity import difference
from purify_jax.evaluation.statistics import Interval, wilson
from purify_jax.keys import threefry
from purify_jax.types import Array, Json

#: One record: attack, index, label and, unless the image was skipped, what scoring found.
Record = dict[str, Any]

#: How N draws of a random defense become one verdict per image.
SCORINGS = ("one_draw", "mean", "vote", "all_draws")


def of_attack(records: Sequence[Record], attack: str) -> list[Record]:
    """The records of one attack, in order."""
    return [record for record in records if record["attack"] == attack]


def attack_names(records: Sequence[Record]) -> list[str]:
    """The attacks in the order in which they were run ("clean" first)."""
    return list(dict.fromkeys(record["attack"] for record in records))


def accuracy(records: Sequence[Record], attack: str, scoring: str = "one_draw") -> Interval:
    """Accuracy under one attack; an image skipped because it had fallen before counts as wrong."""
    check_scoring(scoring)
    chosen = of_attack(records, attack)
    if not chosen:
        raise InputError(
            f"attack: no records of {attack!r}, expected one of {attack_names(records)}"
        )
    return wilson(sum(bool(r.get(scoring, False)) for r in chosen), len(chosen))


def union_accuracy(
    records: Sequence[Record], scoring: str = "one_draw", attacks: Sequence[str] | None = None
) -> Interval:
    """Share of images that withstood every attack (and are right when clean).

    Raises InputError without records, for an attack without any, and where an attack has none of
    some image, which would count as withstood.
    """
    check_scoring(scoring)
    if not records:
        raise InputError("records: got none, expected at least one")
    known = attack_names(records)
    for name in attacks or ():
        if name not in known:
            raise InputError(f"attacks: no records of {name!r}, expected some of {known}")
    chosen = [n for n in known if attacks is None or n in attacks or n == "clean"]
    if not chosen:
        raise InputError(f"attacks: got none, expected some of {known}")
    survived: dict[int, bool] = {}
    seen: dict[str, set[int]] = {name: set() for name in chosen}
    for record in records:
        if record["attack"] in seen:
            index = record["index"]
            seen[record["attack"]].add(index)
            survived[index] = survived.get(index, True) and bool(record.get(scoring, False))
    for name, images in seen.items():
        if len(images) < len(survived):
            raise InputError(
                f"records: {name!r} has {len(images)} of {len(survived)} images, expected all"
            )
    return wilson(sum(survived.values()), len(survived))


def check_scoring(scoring: str) -> None:
    """Raises InputError unless ``scoring`` is one of :data:`SCORINGS`."""
    if scoring not in SCORINGS:
        raise InputError(f"scoring: got {scoring!r}, expected one of {SCORINGS}")


class RecordFile:
    """A JSON-lines file of records that a killed run continues, byte for byte.

    The first line is a header that says what run the file belongs to. Batches are written in a
    fixed order; on opening, whole batches are replayed as long as they match what the run asks
    for, and a torn or damaged tail is cut off and computed again. Every line ends with a checksum of
    its record.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, object]):
        self._path = path
        self._pending: list[tuple[Record, int]] = []
        self._file = None
        self._valid_to = 0
        if path is None:
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        head = first_line(header)
        content = path.read_bytes() if path.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        if complete and not complete.startswith(head):
            raise InputError(
                f"records: {path} belongs to another evaluation "
                f"({_difference(complete, head)}), expected the same one or another work directory"
            )
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        if complete:
            offset = self._valid_to = len(head)
            for line in complete[len(head) :].splitlines(keepends=True):
                record = _record(line)
                # A damaged or changed line, and all lines after it, are computed again.
                if record is None or _line(record) != line:
                    break
                offset += len(line)
                self._pending.append((record, offset))
            self._file.truncate(offset)
            self._file.seek(offset)
        else:
            self._file.truncate(0)
            self._file.write(head)
            self._flush()
            self._valid_to = len(head)

    def batch(
        self,
        attack: str,
        indices: Sequence[int] | np.ndarray,
        compute: Callable[[], list[Record]],
        data: str | None = None,
    ) -> list[Record]:
        """The records of one batch: read back if the file has all of them, else computed.

        ``data`` identifies the images of the batch, where the header cannot. Raises InputError if the
        file has the same batch of other images.
        """
        known = self._pending[: len(indices)]
        names = [(record["attack"], record["index"]) for record, _ in known]
        if names == [(attack, int(i)) for i in indices]:
            before = {record.get("data") for record, _ in known}
            if before != {data}:
                raise InputError(
                    f"records: {self._path} belongs to another evaluation (the images or labels of "
                    f"{attack!r} differ), expected the same ones or another work directory"
                )
            self._pending = self._pending[len(indices) :]
            self._valid_to = known[-1][1] if known else self._valid_to
            return [record for record, _ in known]
        self._pending = []
        records = compute()
        if self._file is not None:
            self._file.seek(self._valid_to)
            self._file.truncate()
            for record in records:
                self._file.write(_line(record))
            self._flush()
            self._valid_to = self._file.tell()
        return records

    def _flush(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._file is not None:
            self._file.close()


def open_records(
    execution: Execution, name: str, key: Array, header: Callable[[], Mapping[str, object]]
) -> RecordFile:
    """``NAME.jsonl`` in the work directory; without a work directory no records are kept.

    header: what the records belong to, beside the run's key and the shard. It is computed only for a file.
    """
    if execution.workdir is None:
        return RecordFile(None, {})
    path = Path(execution.workdir, f"{name}.jsonl")
    sharding.check_one_writer(path, execution.mesh)
    shard = {} if execution.shard == (0, 1) else {"shard": list(execution.shard)}
    about = {"key": np.asarray(jax.random.key_data(threefry(key))).tolist(), **shard}
    return RecordFile(path, {**about, **header()})


def first_line(header: Mapping[str, object]) -> bytes:
    """A file's first line: the header, and that the lines below have checksums."""
    return (json.dumps({"header": dict(header), "lines": "crc32"}, sort_keys=True) + "\n").encode()


def parse_first_line(line: bytes) -> Json:
    """The header of a first line; ValueError, LookupError or TypeError for any other line."""
    head = json.loads(line)
    if head["lines"] != "crc32":
        raise ValueError(f"lines of {head['lines']!r}, expected 'crc32'")
    return head["header"]


def _line(record: Record) -> bytes:
    text = json.dumps(record)
    return (json.dumps({**record, "crc32": zlib.crc32(text.encode())}) + "\n").encode()


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
        if record.pop("crc32") != zlib.crc32(json.dumps(record).encode()):
            return None
        return record if {"attack", "index"} <= record.keys() else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _difference(content: bytes, head: bytes) -> str:
    try:
        before = parse_first_line(content.split(b"\n", 1)[0])
        return difference(before, parse_first_line(head)) or "its header is written differently"
    except (ValueError, LookupError, TypeError, AttributeError):
        return "its first line is not a header"


def read_records(path: str | Path) -> tuple[Json, list[Record]]:
    """(header, records) of a complete or partial record file; InputError if it is not one."""
    try:
        lines = Path(path).read_bytes().splitlines()
        header = parse_first_line(lines[0])
        records = [_record(line) for line in lines[1:]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"records: {path} cannot be read: {error}") from error
    found = [record for record in records if record is not None]
    if len(found) < len(records):
        line = 2 + records.index(None)
        raise InputError(f"records: line {line} of {path} is damaged, expected a record")
    return header, found


def table(records: Sequence[Record]) -> list[Record]:
    """A row per attack: accuracies under every scoring, mean distances and passes, images attacked."""
    rows = []
    for name in attack_names(records):
        chosen = of_attack(records, name)
        attacked = [r for r in chosen if "one_draw" in r]
        row: dict[str, object] = {"attack": name, "images": len(chosen), "attacked": len(attacked)}
        row |= {scoring: accuracy(records, name, scoring) for scoring in SCORINGS}
        # Purifier forward, backward, classifier forward, backward; of all images, skipped or not.
        row["passes"] = np.mean([r.get("passes", (0, 0, 0, 0)) for r in chosen], axis=0).tolist()
        for size in ("linf", "l2"):
            row[size] = float(np.mean([r[size] for r in attacked])) if attacked else 0.0
        rows.append(row)
    return rows
