"""Slices of splits mean the same for every kind of data set: what tensorflow-datasets says."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import purify_jax as pj
from purify_jax import data
from purify_jax.checks import InputError

SIZE = 360
POSITIONS = st.one_of(
    st.none(), st.integers(-500, 500), st.integers(-100, 100).map(lambda p: f"{p}%")
)


def _spec(start, stop):
    return f"test[{'' if start is None else start}:{'' if stop is None else stop}]"


def _bounds_of_tfds(spec):
    tfds = pytest.importorskip("tensorflow_datasets")
    instruction = tfds.core.ReadInstruction.from_spec(spec)
    info = types.SimpleNamespace(num_examples=SIZE)
    (absolute,) = instruction.to_absolute({"test": info})
    start = 0 if absolute.from_ is None else absolute.from_
    return start, SIZE if absolute.to is None else absolute.to


@given(POSITIONS, POSITIONS)
@settings(max_examples=200, deadline=None)
def test_digits_are_cut_as_tfds_cuts(start, stop):
    if len({str(p).endswith("%") for p in (start, stop) if p is not None}) == 2:
        return  # tfds reads "[1:1%]" as one per cent to one per cent; here each is as written
    spec = _spec(start, stop)
    whole = pj.load_split("digits", "test")
    try:
        low, high = _bounds_of_tfds(spec)
    except (AssertionError, ValueError):  # tfds refuses percentages beyond 100 and the like
        return
    if low >= high:
        with pytest.raises(InputError, match="has no images"):
            pj.load_split("digits", spec)
        return
    part = pj.load_split("digits", spec)
    np.testing.assert_array_equal(part.images, whole.images[low:high])
    np.testing.assert_array_equal(part.labels, whole.labels[low:high])


class _Source:
    """Stands for a prepared data set: image i is filled with i."""

    def __len__(self):
        return SIZE

    def __getitems__(self, indices):
        return [{"image": np.full((2, 2, 1), i % 256, np.uint8), "label": i % 10} for i in indices]


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    """load_split("set", ...) of a data set that is read eagerly or lazily."""
    (tmp_path / "set").mkdir()
    labels = np.arange(SIZE, dtype=np.int32) % 10

    def load(name, split, data_dir, lazy, image_size):
        source = _Source()
        if lazy:
            return data.Dataset(name, split, data.LazyImages(source, (2, 2, 1)), labels, 10)
        images = np.stack([r["image"] for r in source.__getitems__(range(SIZE))])
        return data.Dataset(name, split, images, labels, 10)

    monkeypatch.setattr(data.datasets, "_load_tfds", load)
    return lambda split, lazy: pj.load_split("set", split, tmp_path, lazy=lazy)


def test_lazy_and_eager_agree_for_every_slice(prepared):
    @given(POSITIONS, POSITIONS)
    @settings(max_examples=100, deadline=None)
    def agree(start, stop):
        spec = _spec(start, stop)
        found = []
        for lazy in (False, True):
            try:
                found.append(prepared(spec, lazy))
            except InputError as error:
                found.append(str(error))
        eager, lazy = found
        if isinstance(eager, str):
            assert eager == lazy
            return
        assert len(eager) == len(lazy) == len(eager.labels) == len(lazy.labels)
        everything = np.arange(len(eager))
        np.testing.assert_array_equal(eager.batch(everything)[0], lazy.batch(everything)[0])
        np.testing.assert_array_equal(eager.labels, lazy.labels)

    agree()


@pytest.mark.parametrize(
    ("spec", "count"),
    [("test[-100:]", 100), ("test[:20000]", SIZE), ("test[:-10]", SIZE - 10), ("test[-5:-2]", 3)],
)
def test_slices_that_went_wrong(prepared, spec, count):
    assert len(prepared(spec, False)) == len(prepared(spec, True)) == count
    assert len(pj.load_split("digits", spec)) == count


def test_an_empty_slice_is_one_line():
    with pytest.raises(InputError, match=r"'test\[10:5\]' of digits has no images"):
        pj.load_split("digits", "test[10:5]")
