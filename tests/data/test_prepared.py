"""Sets that tensorflow-datasets prepared: versions, other names of features, damage."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from purify_jax import data
from purify_jax.checks import InputError

tfds = pytest.importorskip("tensorflow_datasets")
GREY = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
COUNT = 12


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file


def prepare(root, title, features, example):
    class Builder(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.1")
        name = title

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(COUNT):
                yield i, example(i)

    Builder(data_dir=root, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Small sets: plain, 16 bits, other names of features, none of them, several, numbers as labels."""
    root, f = tmp_path_factory.mktemp("tfds"), tfds.features
    image, label = f.Image(shape=(28, 28, 1)), f.ClassLabel(names=["no", "yes"])
    grey = lambda i: as_png(GREY[i])
    prepare(
        root,
        "plain",
        {"image": image, "label": label},
        lambda i: {"image": grey(i), "label": i % 2},
    )
    deep = f.Image(shape=(28, 28, 1), dtype=np.uint16)
    prepare(
        root,
        "deep",
        {"image": deep, "label": label},
        lambda i: {"image": as_png(GREY[i] * np.uint16(257)), "label": i % 2},
    )
    prepare(
        root,
        "kinds",
        {"picture": image, "kind": label},
        lambda i: {"picture": grey(i), "kind": i % 2},
    )
    prepare(root, "unlabelled", {"image": image}, lambda i: {"image": grey(i)})
    prepare(
        root,
        "several",
        {"image": image, "age": label, "sex": label},
        lambda i: {"image": grey(i), "age": 0, "sex": 1},
    )
    prepare(
        root,
        "numbers",
        {"image": image, "label": f.Scalar(dtype=np.int64)},
        lambda i: {"image": grey(i), "label": i % 3},
    )
    prepare(
        root,
        "minus",
        {"image": image, "label": f.ClassLabel(num_classes=3)},
        lambda i: {"image": grey(i), "label": -1},
    )
    return root  # fmt: skip


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("name", "class_names", "count"),
    [
        ("plain", ("no", "yes"), 2),
        ("plain:3.0.1", ("no", "yes"), 2),
        ("plain:3.*.*", ("no", "yes"), 2),
        ("deep", ("no", "yes"), 2),
        ("kinds", ("no", "yes"), 2),
        ("numbers", (), 3),
    ],
)
def test_what_is_clear_is_read(root, name, class_names, count, lazy):
    found = data.load_split(name, "test", root, lazy=lazy)
    assert (found.class_names, found.num_classes, len(found)) == (class_names, count, COUNT)
    images = found.images[np.arange(COUNT)][..., 0]
    order = [int(np.abs(GREY.astype(int) - image).sum((1, 2)).argmin()) for image in images]
    np.testing.assert_array_equal(images, GREY[order])
    assert found.labels.tolist() == [i % count for i in order]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain:1.0.0", "got version 1.0.0 of 'plain', expected one that is .*: 3.0.1"),
        ("unlabelled", "has the features image, expected one ClassLabel, .* called 'label'"),
        ("several", "has the features age, image, sex, expected one ClassLabel"),
        ("minus", "a split has no labels"),
    ],
)
def test_what_is_not_clear_gets_one_line(root, name, message):
    with pytest.raises(InputError, match=message) as error:
        data.load_split(name, "test", root)
    assert "\n" not in str(error.value)


def lost(folder):
    next(folder.glob("*array_record*")).unlink()


def cut(folder):
    file = next(folder.glob("*array_record*"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(folder):
    next(folder.glob("*array_record*")).write_bytes(b"")


def tfrecord(folder):
    file = next(folder.glob("*array_record*"))
    file.rename(str(file).replace("array_record-", "tfrecord-"))
    card = folder / "dataset_info.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "fileFormat": "tfrecord"}))


def no_card(folder):
    (folder / "dataset_info.json").write_text("")


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("damage", [lost, cut, empty, tfrecord, no_card])
def test_damage_gets_one_line_with_its_remedy(root, tmp_path, damage, lazy):
    shutil.copytree(root / "plain", tmp_path / "plain")
    damage(tmp_path / "plain" / "3.0.1")
    with pytest.raises(
        InputError, match=r"^dataset: .*data_source\(('plain'|name), data_dir="
    ) as error:
        data.load_split("plain", "test", tmp_path, lazy=lazy)
    assert "\n" not in str(error.value)


def test_an_odd_record_is_named():
    class Source:
        def __len__(self):
            return 5

        def __getitems__(self, indices):
            if 3 in indices:
                raise ValueError("no PNG\nmore lines")
            return [{"image": np.full((2, 2, 1), i, np.uint8)} for i in indices]

    images = data.LazyImages(Source(), (2, 2, 1))
    assert images[np.array([4, 0])][:, 0, 0, 0].tolist() == [4, 0]
    with pytest.raises(InputError, match=r"record 3 of 5 is damaged \(no PNG\), expected all"):
        images[np.array([2, 3, 4])]
