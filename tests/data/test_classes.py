"""Classes of data and classifier are compared by name, and their numbers in one place."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import purify_jax as pj
from purify_jax import data, evaluation
from purify_jax.checks import InputError, check_labels, check_outputs
from purify_jax.data import match_classes

DIGITS = tuple(map(str, range(10)))
ANIMALS = ("Bengal cat", "dog", "Zoé")


def labelled(names, name="folder", count=None):
    """A data set with one image of each class, in their order."""
    count = len(names) if count is None else count
    images, labels = np.zeros((count, 2, 2, 1), np.uint8), np.arange(count, dtype=np.int32)
    return data.Dataset(name, "test", images, labels, count, tuple(names))


@pytest.mark.parametrize(
    ("names", "class_names", "outputs", "expected"),
    [
        (DIGITS, DIGITS, 10, range(10)),
        ("012456789", DIGITS, 10, [0, 1, 2, 4, 5, 6, 7, 8, 9]),
        (("00", "02", "07"), DIGITS, 10, [0, 2, 7]),
        (("dog",), ANIMALS, 3, [1]),
        (("crane", "crane"), ("crane", "crane"), 2, [0, 1]),
        (("Dog", "bengal_cat", "zoe\u0301"), ANIMALS, 3, [1, 0, 2]),
        # Numbers are outputs: from 0, or from 1 where there is one for each.
        ("012", ANIMALS, 3, [0, 1, 2]),
        ("02", ANIMALS, 3, [0, 2]),
        ("123", ANIMALS, 3, [0, 1, 2]),
        ("02", (), 3, [0, 2]),
        # A file without names: as many folders as outputs, in alphabetical order.
        (("a", "b", "c"), (), 3, [0, 1, 2]),
    ],
)
def test_folders_are_matched_by_name(names, class_names, outputs, expected):
    found = match_classes(labelled(names), class_names, outputs)
    assert found.labels.tolist() == list(expected)
    assert found.num_classes == outputs


@pytest.mark.parametrize(
    ("names", "class_names", "outputs", "message"),
    [
        (("dog", "wolf"), ANIMALS, 3, "got the classes dog, wolf, .*same names: Bengal cat, dog, Zoé"),
        ("12", ANIMALS, 3, "got the classes 1, 2"),  # from 0, or from 1 without the last
        ("0123", ANIMALS, 3, "got the classes 0, 1, 2, 3"),
        (("airplane", "bird"), ("0", "1"), 2, "got the classes airplane, bird"),
        (("a", "b"), (), 3, "3 without names"),
        (("a", "b", "c", "d"), (), 3, "got 3 outputs per image, expected one for each of 4"),
    ],
)  # fmt: skip
def test_other_folders_are_refused_with_both_lists(names, class_names, outputs, message):
    with pytest.raises(InputError, match=message):
        match_classes(labelled(names), class_names, outputs)


def test_data_sets_that_are_no_folders():
    # tensorflow-datasets calls classes without names 0, 1, 2: they are counted alike.
    for names, others in ((DIGITS[:3], ANIMALS), (ANIMALS, DIGITS[:3])):
        assert match_classes(labelled(names, "own"), others, 3).labels.tolist() == [0, 1, 2]
    assert match_classes(labelled((), "own", 3), ANIMALS, 3).class_names == ANIMALS
    with pytest.raises(InputError, match="got the classes Zoé, cow"):
        match_classes(labelled(("Zoé", "cow"), "own"), ANIMALS, 3)
    with pytest.raises(InputError, match="got 3 outputs per image, expected one for each of 2"):
        match_classes(labelled((), "own", 2), ANIMALS, 3)


@given(st.permutations(range(12)), st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_every_image_keeps_its_class(order, count):
    class_names = [f"class {i}" for i in range(12)]
    names = [class_names[i] for i in order[:count]]
    found = match_classes(labelled(names), class_names, 12)
    assert [class_names[label] for label in found.labels] == names


def test_lacking_classes_are_said(caplog):
    match_classes(labelled("012456789"), DIGITS, 10)
    assert "no images of the classifier's 3" in caplog.text


def test_shipped_models_have_the_names_of_their_data(models):
    assert models[1].class_names == DIGITS
    assert data.known_class_names("mnist") == DIGITS
    photographs = data.load_split("cifar10_photos", "test")
    assert data.known_class_names("cifar10") == photographs.class_names
    assert pj.pretrained.load("cifar10").classifier.class_names == photographs.class_names
    test = data.load_split("digits", "test")
    same = pj.models.match_classes(models[1], test)
    np.testing.assert_array_equal(same.labels, test.labels)
    assert evaluation.identity(data=same) == evaluation.identity(data=test)


def test_names_are_in_the_file_of_a_classifier(tmp_path, models):
    path, named = tmp_path / "m.safetensors", lambda names: {"class_names": names}
    own = dataclasses.replace(models[1], metadata=named(list("abcdefghij")))
    pj.models.save_model(path, own)
    assert pj.load_model(path).class_names == tuple("abcdefghij")
    assert dataclasses.replace(models[1], metadata={}).class_names == ()
    for names, message in (
        ("ab", "expected a list"),
        ([1], "expected a list"),
    ):
        with pytest.raises(InputError, match=f"metadata.class_names: .*{message}"):
            pj.models.save_model(path, dataclasses.replace(own, metadata=named(names)))
    pj.models.save_model(path, dataclasses.replace(own, metadata=named(["a", "b"])))
    with pytest.raises(InputError, match="2 class names for 10 outputs"):
        pj.load_model(path)


class Linear(nn.Module):
    """Images → logits."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(x.reshape(x.shape[0], -1))


def trained(outputs, dataset, start=None):
    settings = pj.training.ClassifierSettings(num_steps=1, batch_size=2, steps_per_dispatch=1)
    return pj.train_classifier(Linear(outputs), dataset, settings, start=start).model


def test_a_trained_classifier_knows_its_classes():
    about_training = pj.training.settings.about_training
    about = about_training(labelled(ANIMALS), {"steps": 4}, num_classes=3)
    assert about["class_names"] == list(ANIMALS)
    assert "class_names" not in about_training(labelled(ANIMALS), {"steps": 4})
    # A training goes on with two of the classes, by their names.
    variables = Linear(3).init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    start = pj.models.Model("classifier", Linear(3), variables, (2, 2, 1), about)
    again = trained(3, labelled(("dog", "Zoé")), start=start)
    assert (again.metadata["class_names"], again.metadata["num_classes"]) == (list(ANIMALS), 3)
    with pytest.raises(InputError, match="got the classes cow"):
        trained(3, labelled(("cow",)), start=start)


def test_shapes_of_outputs():
    check_outputs("defense", (4, 3), 3)
    check_outputs("defense", (4, 3))
    for shape, message in (((4,), "output shape .4,."), ((4, 1), r"got 1 output per .*\[0, z\]")):
        with pytest.raises(InputError, match=message):
            check_outputs("defense", shape)


@pytest.mark.parametrize("outputs", [1, 9, 1000])
def test_every_way_in_counts_the_outputs(outputs):
    test = data.Dataset("own", "test", np.zeros((2, 2, 2, 1), np.float32), np.arange(2), 10)
    defense = pj.undefended(lambda x: jnp.zeros((len(x), outputs)) + x.mean())
    key, images = jax.random.key(0), test.images
    detect = evaluation.detection.Judge(defense, lambda keys, x: x.sum((1, 2, 3)), 1.0)
    ways = {
        "evaluate": lambda: pj.evaluate(key, defense, {}, test, draws=1),
        "certify": lambda: evaluation.certify(key, defense, test, sigma=0.1, n0=2, n=2),
        "corruptions": lambda: evaluation.evaluate_corrupted(
            key, {"m": defense}, lambda n, s: test, names=["contrast"], severities=[1]
        ),
        "train": lambda: trained(outputs, test),
    }
    if outputs == 1:  # they know no number of classes
        keys = pj.image_keys(key, range(2))
        ways["detect"] = lambda: detect(keys, images, test.labels)
        ways["score"] = lambda: evaluation.worst_of.correct_draws(
            key, defense, images, test.labels, 1
        )
    for way, run in ways.items():
        with pytest.raises(InputError, match=f"got {outputs} output") as error:
            run()
        assert "\n" not in str(error.value), way


def test_labels_counted_from_one_and_one_hot_get_a_hint():
    with pytest.raises(InputError, match="counted from 1. subtract 1"):
        check_labels(np.arange(1, 11), 10)
    with pytest.raises(InputError, match="one-hot. take argmax"):
        check_labels(np.eye(3), 3)
    with pytest.raises(InputError, match="a split has no labels"):
        check_labels(np.full(3, -1), 3)


def test_a_folder_without_one_class_keeps_its_accuracy(models, tmp_path, caplog):
    """Nine of the ten digits are right by their names; a class that the model lacks is refused."""
    test = data.load_split("digits", "test")
    for index in np.flatnonzero(test.labels != 3)[:40]:
        folder = tmp_path / "test" / test.class_names[test.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.rint(test.images[index, ..., 0] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir()
    found = pj.models.match_classes(models[1], data.load_split("folder", "test", tmp_path))
    images, labels = found.batch(np.arange(40))
    predicted = pj.jit(pj.models.logits_fn(models[1]))(images).argmax(-1)
    assert (predicted == labels).mean() > 0.9
    assert "no images of the classifier's 3" in caplog.text
    (tmp_path / "test" / "9").rename(tmp_path / "test" / "nine")
    with pytest.raises(InputError, match="got the classes 0, 1, 2, 4, 5, 6, 7, 8, nine, expected"):
        pj.models.match_classes(models[1], data.load_split("folder", "test", tmp_path))
