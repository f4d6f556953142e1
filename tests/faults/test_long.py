"""The fuzz and the kills as slow tests, a tenth of what their programs do by default."""

import fuzz
import kills
import pytest


@pytest.mark.slow
def test_a_fuzz_finds_nothing():
    counts, findings = fuzz.fuzz(seed=3, inputs=200, processes=6)
    assert sum(counts.values()) == 200
    assert findings == []


def test_a_fuzz_of_functions_finds_nothing():
    counts, findings = fuzz.of_functions(seed=4, inputs=400)
    assert findings == []
    assert counts["functions: refused"] > 300
    assert counts["functions: accepted"] > 10


@pytest.mark.slow
def test_killed_and_started_again_is_never_killed():
    counts, wrong = kills.kill_all(seed=1, kills=15)
    assert sum(hits for hits, _ in counts.values()) >= 15
    assert wrong == []
