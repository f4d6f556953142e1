"""Batches from anybody's iterator: the same training as from a data set, also after a stop; or one line."""

import json
import re
import sys

import chex
import jax
import numpy as np
import pytest

import purify_jax as pj
from purify_jax import networks
from purify_jax.checks import InputError
from purify_jax.data import Batches, batch_indices
from purify_jax.training import ClassifierSettings, RunSettings, ScoreSettings, feeding

SETTINGS = {
    "batch_size": 16,
    "schedule": "constant",
    "steps_per_dispatch": 2,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module")
def digits():
    return pj.load_split("digits", "train[:100]")


def network(outputs=None):
    if outputs is None:
        return networks.build({"name": "MLP", "features": [4]})
    return networks.build(
        {"name": "ConvNet", "features": [2, 2], "hidden": 4, "num_outputs": outputs}
    )


def same_batches(dataset, start=0):
    """What the data set's own training sees, step by step, from ``start`` on."""
    step = start
    while True:
        chosen = batch_indices(0, step, 16, len(dataset))
        yield {"image": dataset.images[chosen], "label": dataset.labels[chosen]}
        step += 1


def score_model(data, workdir=None, steps=8, **more):
    settings = ScoreSettings(**{**SETTINGS, "num_steps": steps, "sigmas": [0.1, 0.3], **more})
    execution = pj.Execution(workdir=workdir)
    return pj.train_score_model(network(), data, settings, execution=execution).model


def assert_same(a, b):
    chex.assert_trees_all_equal(a.params, b.params)


@pytest.mark.ci
def test_an_iterator_trains_what_its_data_set_does(digits):
    own = score_model(digits)
    assert_same(score_model(same_batches(digits)), own)
    pairs = ((b["image"], b["label"]) for b in same_batches(digits))
    assert_same(score_model(pairs), own)
    assert_same(score_model(b["image"] for b in same_batches(digits)), own)
    other = score_model(same_batches(digits, start=1))
    assert not np.array_equal(jax.tree.leaves(other.params)[0], jax.tree.leaves(own.params)[0])
    # A model file names a data set only if it has a name.
    assert own.metadata["dataset"] == "digits"
    assert "dataset" not in other.metadata


def test_pixels_of_8_bits_are_those_divided_by_255(digits):
    pixels = lambda: (np.rint(b["image"] * 255).astype(np.uint8) for b in same_batches(digits))
    floats = (p.astype(np.float32) / np.float32(255) for p in pixels())
    chex.assert_trees_all_close(score_model(pixels()).params, score_model(floats).params, atol=1e-6)


class Counting:
    """Counts what is read; the source kinds below are made of it."""

    def __init__(self, dataset):
        self.dataset, self.read = dataset, 0

    def from_step(self, step):
        for batch in same_batches(self.dataset, step):
            self.read += 1
            yield batch


class WithState:
    """What grain's iterators are: one that says where it is."""

    def __init__(self, counting, as_bytes):
        self.counting, self.as_bytes, self.step = counting, as_bytes, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.step += 1
        return next(self.counting.from_step(self.step - 1))

    def get_state(self):
        return str(self.step).encode() if self.as_bytes else {"next_index": self.step}

    def set_state(self, state):
        self.step = int(state) if self.as_bytes else state["next_index"]


def test_the_state_beside_a_dispatch_is_the_one_after_it(digits, tmp_path):
    """The thread that reads ahead is further by then; it shares nothing with the one that saves."""
    batches = Batches(WithState(Counting(digits), False))
    plan = feeding.plan(batches, RunSettings(400, 16, steps_per_dispatch=1), 0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for step, dispatch in enumerate(feeding.feed(batches, plan, None, None), start=1):
            assert json.loads(dispatch.state) == {"value": {"next_index": step}}
            if step % 10 == 0:
                feeding.remember(tmp_path, step, dispatch.state)
    finally:
        sys.setswitchinterval(interval)
    assert list(json.loads((tmp_path / "iterator.json").read_text())) == [
        str(step) for step in range(330, 401, 10)
    ]


@pytest.mark.parametrize("kind", ["generator", "function", "state", "state in bytes"])
def test_a_run_that_continues_sees_what_it_would_have_seen(digits, tmp_path, kind):
    counting = Counting(digits)
    make = {
        "generator": lambda: counting.from_step(0),
        "function": lambda: counting.from_step,
        "state": lambda: WithState(counting, False),
        "state in bytes": lambda: WithState(counting, True),
    }[kind]
    score_model(make(), tmp_path, steps=4)
    counting.read = 0
    assert_same(score_model(make(), tmp_path), score_model(digits))
    # One batch is read to learn the images' shape; only a generator's first four are passed over.
    assert counting.read == {"generator": 8}.get(kind, 5)


@pytest.mark.ci
def test_grain_continues_where_it_was(digits, tmp_path):
    grain = pytest.importorskip("grain.python", reason="grain is not installed")

    class Source:
        def __repr__(self):  # by which grain knows it again
            return "digits"

        def __len__(self):
            return len(digits)

        def __getitem__(self, index):
            return {"image": digits.images[index], "label": digits.labels[index]}

    def loader():
        sampler = grain.IndexSampler(len(digits), shuffle=True, seed=3, num_epochs=None)
        operations = [grain.Batch(16, drop_remainder=True)]
        return grain.DataLoader(data_source=Source(), sampler=sampler, operations=operations)

    whole = score_model(loader())
    score_model(loader(), tmp_path, steps=4)
    assert_same(score_model(loader(), tmp_path), whole)
    assert set(json.loads((tmp_path / "iterator.json").read_text())) == {"2", "4", "6", "8"}
    dataset = grain.MapDataset.source(Source()).shuffle(seed=1).repeat().batch(16)
    whole = score_model(dataset.to_iter_dataset())
    score_model(dataset.to_iter_dataset(), tmp_path / "2", steps=4)
    assert_same(score_model(dataset.to_iter_dataset(), tmp_path / "2"), whole)


def test_what_can_be_read_again_is(digits):
    epoch = [next(same_batches(digits, k)) for k in range(3)]
    again = (epoch[k % 3] for k in range(8))
    assert_same(score_model(epoch), score_model(again))
    with pytest.raises(InputError, match="batches: ended after 3, expected one for every step"):
        score_model(iter(epoch))


@pytest.mark.ci
def test_a_classifier_has_the_classes_of_its_network(digits):
    settings = ClassifierSettings(8, **SETTINGS)
    train = lambda data, outputs: pj.train_classifier(network(outputs), data, settings).model
    found = train(same_batches(digits), 10)
    assert found.metadata["num_classes"] == 10
    assert_same(found, train(digits, 10))
    with pytest.raises(InputError, match=r"labels of batch 0: values lie in .*expected \[0, 6\]"):
        train(same_batches(digits), 7)


IMAGES, LABELS = np.full((16, 8, 8, 1), 0.5, np.float32), np.zeros(16, np.int64)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (IMAGES, r"batch 1 is a ndarray, expected .*\(images, labels\)"),
        ((IMAGES,), "batch 1 is a tuple of 1"),
        ({"x": IMAGES, "label": LABELS}, r"batch 1 is the names \['label', 'x'\]"),
        ((IMAGES[0], LABELS), r"batch 1 have the shape \(8, 8, 1\)"),
        ((IMAGES[:9], LABELS[:9]), r"batch 1 are float32 \(9, 8, 8, 1\), expected the first .*drop_rem"),
        ((IMAGES[:, :4], LABELS), r"batch 1 are float32 \(16, 4, 8, 1\)"),
        (((IMAGES * 255).astype(np.uint8), LABELS), "batch 1 are uint8 .*expected the first batch's float32"),
        ((IMAGES * 255, LABELS), r"batch 1: values lie in \[127.5, 127.5\], expected \[0, 1\]"),
        ((IMAGES * np.nan, LABELS), "batch 1: 1024 pixels are NaN"),
        ((IMAGES.astype(np.int32), LABELS), "batch 1 are int32, expected uint8 or floats"),
        ((np.zeros((16, 3, 8, 8), np.float32), LABELS), "channels last"),
        ((IMAGES, LABELS[:9]), "batch 1 has 9 labels for 16 images"),
        ((IMAGES, LABELS - 1), r"labels of batch 1: values lie in \[-1, -1\], expected \[0, 9\]"),
        ((IMAGES, LABELS * 0.5), "labels of batch 1: got dtype float64"),
    ],
)  # fmt: skip
def test_every_batch_is_checked(batch, message):
    batches = Batches(iter([(IMAGES, LABELS), batch]))
    batches.check_classes(10)
    batches.take(1)
    with pytest.raises(InputError, match=f"^batches: .*{message}") as found:
        batches.take(1)
    assert "\n" not in str(found.value)


def test_what_is_no_training_data_is_one_line(digits, tmp_path):
    for wrong in (3, None, object()):
        with pytest.raises(InputError, match="^dataset: got .*, expected a Dataset, or batches"):
            score_model(wrong)
    with pytest.raises(InputError, match="the first has 16 images, expected batch_size = 32"):
        score_model(same_batches(digits), batch_size=32)
    with pytest.raises(InputError, match="batches: ended after 0"):
        score_model([])
    with pytest.raises(InputError, match="batches: got 3, expected an iterable"):
        score_model(lambda step: 3)
    counting = Counting(digits)
    score_model(WithState(counting, False), tmp_path, steps=4)
    (tmp_path / "iterator.json").write_text('{"4": "{\\"value\\": []}"}')
    with pytest.raises(InputError, match=r"does not take back where it was at step 4 \(TypeError"):
        score_model(WithState(counting, False), tmp_path)
    (tmp_path / "iterator.json").write_text("{")
    with pytest.raises(InputError, match=re.escape("iterator.json is damaged")):
        score_model(WithState(counting, False), tmp_path)
