"""Kills every binary that writes at random moments, and looks at what it makes when it may end.

python -m tests.faults.kills --seed=0 --kills=100

The files of a run that was killed some times and started again are those of a run never killed, byte for
byte, but for durations. A start that ends in one line is one that says what to do, and is counted.
"""

import argparse
import collections
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

if __package__:  # as a program; pytest puts this folder on the path itself
    sys.path.insert(0, str(Path(__file__).parent))

import harness
import workplace

BINARIES = (
    "train_ebm", "train_classifier", "train_defense", "evaluate", "detect", "certify", "corruptions",
    "compare", "purify", "score", "export", "import_weights", "reproduce",
    "experiments.reproduction.exchange", "experiments.reproduction.tables",
)  # fmt: skip
#: A folder of results and the pages that tables makes of them stand for the whole checkout.
_TABLES = "experiments.reproduction.tables"
#: Starts that end in one line before a binary counts as one that does not come back.
_PATIENCE = 30


def fresh(name: str, place: workplace.Workplace, out: Path) -> dict:
    """Makes the folder of a binary; faults that its runs have (none, but another checkout)."""
    out.mkdir(parents=True)
    if name == "reproduce":
        workplace.prepare(place, out)
    if name != _TABLES:
        return {}
    for part in ("experiments", "results"):
        shutil.copytree(harness.ROOT / part, out / part)
    (out / "docs").mkdir()
    for page in ("README.md", "docs/results.md"):
        (out / page).write_text((harness.ROOT / page).read_text().replace("0.9", "0.0"))
    return {"checkout": out}


def killed(name: str, place: workplace.Workplace, folder: Path, chance: random.Random, kills: int):
    """(kills, starts that ended in one line, what is wrong) of one binary, killed so many times.

    A run that ends before its kill is begun anew, in a new folder: every kill hits a living process.
    """
    faults = fresh(name, place, folder / "whole")
    for _ in range(2):  # the first one compiles
        done = workplace.start(name, place, folder / "whole", **faults).wait(600)
        if done.outcome != "accepted":
            return 0, 0, [f"{name}: {done.outcome} without a kill: {done.line[-300:]}"]
        shutil.rmtree(folder / "whole")
        faults = fresh(name, place, folder / "whole")
    done = workplace.start(name, place, folder / "whole", **faults).wait(600)
    expected = workplace.content(folder / "whole")
    hits, lines, wrong, number = 0, 0, [], 0
    while hits < kills and not wrong:
        number += 1
        out = folder / str(number)
        faults = fresh(name, place, out)
        for _ in range(min(4, kills - hits)):
            running = workplace.start(name, place, out, **faults)
            time.sleep(chance.uniform(0.02, 1.0) * done.seconds)
            running.kill()
            ended = running.wait(600)
            hits += ended.outcome == "killed"
            lines += ended.outcome == "refused"
            if ended.outcome in ("traceback", "unclear"):
                wrong.append(f"{name}: {ended.outcome}: {ended.err[-600:]}")
            if ended.outcome == "accepted":
                break
        for _ in range(_PATIENCE):
            last = workplace.start(name, place, out, **faults).wait(600)
            # What reproduce had started lives on, and holds its folder until it ends.
            if "is in use by process" not in last.err:
                break
            lines += 1
            time.sleep(1)
        if last.outcome != "accepted":
            wrong.append(f"{name}: {last.outcome} after kills: {last.err[-600:]}")
        elif (found := workplace.content(out)) != expected:
            names = sorted(n for n in expected | found if expected.get(n) != found.get(n))
            wrong.append(f"{name}: differ: {names[:10]}")
        shutil.rmtree(out)
    return hits, lines, wrong


def kill_all(seed: int, kills: int, binaries=BINARIES):
    """(counts by binary, what is wrong): at least so many kills, shared by the binaries."""
    chance = random.Random(seed)
    each = -(-kills // len(binaries))
    counts: dict[str, tuple[int, int]] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kills_") as scratch:
        place = workplace.make(Path(scratch))
        for name in binaries:
            hits, lines, found = killed(name, place, Path(scratch) / "out" / name, chance, each)
            counts[name] = (hits, lines)
            wrong += found
            print(f"{name}: {hits} kills, {lines} lines, {len(found)} wrong", flush=True)
    return counts, wrong


def main() -> None:
    """Numbers in, a report out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=105)
    parser.add_argument("--binaries", nargs="+", default=BINARIES, choices=BINARIES)
    options = parser.parse_args()
    started = time.monotonic()
    counts, wrong = kill_all(options.seed, options.kills, options.binaries)
    total = collections.Counter()
    for hits, lines in counts.values():
        total.update(kills=hits, lines=lines)
    seconds = round(time.monotonic() - started)
    print(json.dumps({"seed": options.seed, "seconds": seconds, **total, "wrong": len(wrong)}))
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
