"""Kills every binary that writes at random moments, and looks at what it makes when it may end.

The files of a run that was killed some times and started again are those of a run never killed, byte for
byte, but for durations. A start that ends in one line says what to do.
"""

import random
import time

import pytest

from tests.faults import workplace

#: Starts that end in one line before a binary counts as one that does not come back.
PATIENCE = 30


def finished(name, place, out):
    """Lets a binary run to its end, and waits for what a killed one had started; how it ended."""
    for _ in range(PATIENCE):
        done = workplace.start(name, place, out).wait(600)
        # What reproduce had started lives on, and holds its folder until it ends.
        if "is in use by process" not in done.err:
            break
        time.sleep(1)
    assert (name, done.outcome) == (name, "accepted"), done.err[-2000:]
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name", [*workplace.BINARIES, workplace.TABLES])
def test_killed_and_started_again_is_never_killed(place, tmp_path, name):
    """A run that ends before its kill is begun anew, in a new folder: every kill hits a living process."""
    chance = random.Random(name)
    for run in range(3):  # the first ones compile
        whole = workplace.prepare(name, place, tmp_path / f"whole_{run}")
        seconds = finished(name, place, whole).seconds
    expected = workplace.content(whole)
    kills, wanted, folders = 0, 5 if name == "evaluate" else 1, 0
    while kills < wanted:
        folders += 1
        out = workplace.prepare(name, place, tmp_path / f"killed_{folders}")
        for _ in range(wanted - kills):
            running = workplace.start(name, place, out)
            time.sleep(chance.uniform(0.02, 1.0) * seconds)
            running.kill()
            ended = running.wait(600)
            assert ended.outcome in ("killed", "refused", "accepted"), ended.err[-2000:]
            kills += ended.outcome == "killed"
            if ended.outcome == "accepted":
                break
        finished(name, place, out)
        assert workplace.content(out) == expected
