"""Configs, flags, records and images as hypothesis draws them: fine, or one line."""

import copy
import io
import math

import numpy as np
import pytest
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

import purify_jax as pj
from experiments.common import cli, flagging
from experiments.configs import digits
from purify_jax.checks import InputError
from purify_jax.evaluation.records import RecordFile, read_records

quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 10**9, math.nan, math.inf, 2.5])
)
ANYTHING = st.one_of(
    NUMBERS, st.text(max_size=5), st.booleans(), st.none(), st.lists(NUMBERS, max_size=3)
)
#: Field → whether a value is one of its (all others must be refused).
whole = lambda low: lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low
number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
FIELDS = {
    "ebm.steps": whole(1),
    "ebm.batch_size": whole(1),
    "ebm.checkpoint_every": whole(1),
    "ebm.steps_per_dispatch": whole(1),
    "ebm.learning_rate": lambda v: number(v) and v >= 0,
    "ebm.ema_decay": lambda v: number(v) and 0 <= v <= 1,
    "ebm.clip_norm": lambda v: v is None or (number(v) and v >= 0),
    "ebm.schedule": lambda v: v in ("cosine", "constant"),
    "seed": lambda v: whole(0)(v) and v < 2**32 - 15,
    "purification.num_steps": whole(1),
    "purification.num_restarts": whole(1),
    "purification.noise_scale": lambda v: number(v) and v >= 0,
    "attack.epsilon": lambda v: number(v) and 0 <= v <= 1,
}


def tried(call):
    """(what a call returns, None), or (None, the one line of what it refuses)."""
    try:
        return call(), None
    except InputError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    return None, message


@quick
@given(st.sampled_from(sorted(FIELDS)), ANYTHING)
def test_a_config_says_what_it_may(monkeypatch, field, value):
    plain = copy.deepcopy(digits.get_config().to_dict())
    *path, last = field.split(".")
    place = plain
    for step in path:
        place = place[step]
    place[last] = value
    monkeypatch.setattr(flagging, "FLAGS", type("F", (), {"config": ConfigDict(plain)}))
    _, message = tried(lambda: flagging.training_config("ebm"))
    assert FIELDS[field](value) if message is None else last in message, (field, value)


@quick
@given(st.sampled_from(["batch_size", "noise_scale", "seed", "fraction"]), NUMBERS)
def test_flags_are_numbers_of_their_range(monkeypatch, name, value):
    own = flags.FlagValues()
    define = flags.DEFINE_integer if name in ("batch_size", "seed") else flags.DEFINE_float
    define(name, None, "", flag_values=own)
    ranges = {
        "batch_size": lambda v: v >= 1,
        "noise_scale": lambda v: 0 <= v < math.inf,
        "seed": lambda v: 0 <= v < 2**32 - 15,
        "fraction": lambda v: 0 <= v <= 1,
    }
    monkeypatch.setattr(flags, "FLAGS", own)
    try:
        own(["binary", f"--{name}={value}"])
    except flags.IllegalFlagValueError:
        assert name in ("batch_size", "seed")
        assert not isinstance(value, int)
        return
    _, message = tried(cli.check_numbers)
    assert (message is None) == ranges[name](value), (message, value)
    assert message is None or message.startswith(f"{name}: got ")


HEADER = {"run": 1}


def written(path):
    """Two batches of records, and what they are; computed where the file does not have them."""
    file = RecordFile(path, HEADER)
    compute = lambda start: [
        {"attack": "clean", "index": start + i, "one_draw": True} for i in range(2)
    ]
    found = [file.batch("clean", [s, s + 1], lambda s=s: compute(s)) for s in (0, 2)]
    file.close()
    return found


@quick
@given(
    st.integers(0, 400),
    st.one_of(st.binary(max_size=30), st.sampled_from([b"\n", b"{}\n", b"null\n", b"\xff\n"])),
    st.booleans(),
)
def test_records_are_continued_to_the_same_bytes_or_refused(tmp_path_factory, at, junk, cut):
    path = tmp_path_factory.mktemp("r") / "records.jsonl"
    expected = written(path)
    content = path.read_bytes()
    path.write_bytes(content[:at] + junk + (b"" if cut else content[at:]))
    found, message = tried(lambda: written(path))
    if message is not None:
        assert at <= content.index(b"\n")  # the header is not this run's
        return
    assert path.read_bytes() == content
    assert found == expected
    assert read_records(path)[1] == [record for batch in found for record in batch]


@quick
@given(st.data())
def test_a_file_is_an_image_or_not(tmp_path_factory, data):
    buffer = io.BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "JPEG"]))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("i") / "a.png"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    image, _ = tried(lambda: pj.data.read_image(path))
    assert image is None or (image.dtype == np.uint8 and image.ndim == 3)


def test_a_whole_image_is_read_as_it_was_written(tmp_path):
    for channels in (1, 3):
        pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
        (tmp_path / "a.png").write_bytes(pj.data.png(pixels))
        np.testing.assert_array_equal(pj.data.read_image(tmp_path / "a.png"), pixels)
    with pytest.raises(InputError, match="cannot be read"):
        pj.data.read_image(tmp_path / "none.png")
