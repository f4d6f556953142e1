"""A fuzz of the binaries and the public functions: which bad inputs are not refused in one line?

python -m tests.faults.fuzz --seed=0 --inputs=2000

Every input has one thing wrong that the generator knows, and must end in one line (binaries: status 1);
one in ten is fine and must be accepted. Prints counts and what did not end as expected; status 1 if anything.
"""

import argparse
import collections
import json
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __package__:  # as a program; pytest puts this folder on the path itself
    sys.path.insert(0, str(Path(__file__).parent))

import fuzz_binaries
import fuzz_functions
import harness
import workplace

#: Seconds after which an input counts as a hang.
LIMIT = 90


def in_a_fork(case: fuzz_binaries.Case) -> str:
    """How a case ends in a fork of a warm process."""
    return _judged(case, harness.run(case.binary, *case.arguments, timeout=LIMIT))


def as_a_process(case: fuzz_binaries.Case) -> str:
    """The same from the interpreter on, as a user starts it."""
    name = case.binary if "." in case.binary else f"experiments.{case.binary}"
    command = [sys.executable, "-m", name, *(a.replace("\0", "") for a in case.arguments)]
    variables = {**harness.os.environ, **harness.environment()}
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=harness.ROOT, env=variables, capture_output=True, timeout=LIMIT
        )
        texts = (done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        ended = harness.Done(done.returncode, *texts, time.monotonic() - started)
    except subprocess.TimeoutExpired:
        ended = harness.Done(1, "", "", time.monotonic() - started, True)
    return _judged(case, ended)


def _judged(case: fuzz_binaries.Case, done: harness.Done) -> str:
    if case.expected == done.outcome or (
        case.expected == "either" and done.outcome in ("accepted", "refused")
    ):
        return done.outcome
    return f"{done.outcome} ({case.expected} was expected): {done.line[-300:]}"


def fuzz(seed: int, inputs: int, processes: int) -> tuple[dict[str, int], list[str]]:
    """(counts by outcome, what did not end as expected) of so many inputs, three in four of them functions'."""
    counts: collections.Counter[str] = collections.Counter()
    findings = []
    binaries = inputs // 4
    with tempfile.TemporaryDirectory(prefix="fuzz_") as scratch:
        folder = Path(scratch)
        place = workplace.make(folder)
        made = fuzz_binaries.cases(random.Random(seed), place, folder / "cases")
        chosen = [next(made) for _ in range(binaries)]
        with ThreadPoolExecutor(2) as pool:
            run = lambda numbered: (as_a_process if numbered[0] < processes else in_a_fork)(
                numbered[1]
            )
            for case, ended in zip(chosen, pool.map(run, enumerate(chosen)), strict=True):
                counts[f"binaries: {ended.split(' (')[0]}"] += 1
                if "expected" in ended:
                    findings.append(f"{case.binary}, {case.what}: {ended}")
    more, found = of_functions(seed, inputs - binaries)
    return {**counts, **more}, findings + found


def of_functions(seed: int, inputs: int) -> tuple[dict[str, int], list[str]]:
    """The same of so many calls of functions."""
    counts: collections.Counter[str] = collections.Counter()
    findings = []
    calls = fuzz_functions.cases(random.Random(seed))
    for _ in range(inputs):
        text, expected, call = next(calls)
        got, message = fuzz_functions.outcome(call)
        counts[f"functions: {got}"] += 1
        if got != expected:
            findings.append(f"{text}: {got} ({expected} was expected): {message[:200]}")
    return dict(counts), findings


def main() -> None:
    """Numbers in, a report out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=60, help="inputs of a real process each")
    options = parser.parse_args()
    started = time.monotonic()
    counts, findings = fuzz(options.seed, options.inputs, options.processes)
    seconds = round(time.monotonic() - started)
    print(json.dumps({**vars(options), "seconds": seconds, "counts": counts}, indent=2))
    print("\n".join(sorted(findings)))
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
