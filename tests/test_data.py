"""Loading, splits and stateless batches."""

import numpy as np
import pytest
from PIL import Image

from purify_jax import data
from purify_jax.checks import InputError
from purify_jax.data import built_in


def test_digits_are_all_there_once():
    train, test = (data.load_split("digits", s) for s in ("train", "test"))
    assert (len(train), len(test), train.image_shape) == (1437, 360, (8, 8, 1))
    assert train.images.min() == 0
    assert train.images.max() == 1
    from sklearn.datasets import load_digits

    both = np.concatenate([train.images, test.images]).reshape(1797, 64)
    original = load_digits().data / 16
    assert np.array_equal(np.sort(both.sum(1)), np.sort(original.sum(1).astype(np.float32)))
    # Its file is read without it, which takes a second less.
    for read, expected in zip(built_in._digits_table(), load_digits(return_X_y=True), strict=True):
        assert np.array_equal(read, expected)


def test_photographs_ship():
    photos = data.load_split("cifar10_photos", "test")
    assert (photos.image_shape, photos.images.dtype, len(photos)) == ((32, 32, 3), np.uint8, 64)
    # The first of every class, then the second of every class, ...
    assert photos.labels.tolist() == [i % 10 for i in range(64)]
    assert photos.class_names[:2] == ("airplane", "automobile")
    assert photos.images.astype(int).sum() == 24842169
    # Photographs: squares cut out in the wrong place would have edges in their middle.
    steps = np.abs(np.diff(photos.images.astype(float), axis=2)).mean((0, 1, 3))
    assert steps.max() < 1.5 * steps.min()
    few = data.load_split("cifar10_photos", "test[10:12]")
    np.testing.assert_array_equal(few.images, photos.images[10:12])
    with pytest.raises(
        InputError, match="got 'train', expected one of .'test'. for cifar10_photos"
    ):
        data.load_split("cifar10_photos", "train")


def test_classes_have_names_or_numbers():
    assert data.load_split("digits", "test").class_names == tuple("0123456789")
    image, label = np.zeros((1, 2, 2, 1)), np.zeros(1, np.int32)
    assert data.Dataset("x", "test", image, label, 2).class_names == ()
    with pytest.raises(InputError, match="class_names of x: got 1, expected one for each of the 2"):
        data.Dataset("x", "test", image, label, 2, ("a",))


def test_slices():
    whole = data.load_split("digits", "train")
    first = data.load_split("digits", "train[:80%]")
    rest = data.load_split("digits", "train[80%:]")
    few = data.load_split("digits", "train[10:13]")
    assert len(first) == 1150
    assert np.array_equal(np.concatenate([first.images, rest.images]), whole.images)
    assert np.array_equal(few.labels, whole.labels[10:13])


def test_batches_depend_on_seed_and_step_alone():
    steps = [data.batch_indices(3, k, 64, 100) for k in range(10)]
    again = [data.batch_indices(3, k, 64, 100) for k in (7, 2)]
    assert np.array_equal(again[0], steps[7])
    assert np.array_equal(again[1], steps[2])
    assert not np.array_equal(data.batch_indices(4, 7, 64, 100), steps[7])
    flat = np.concatenate(steps)
    for epoch in range(6):  # each epoch is a permutation, batches straddle epochs
        assert sorted(flat[100 * epoch : 100 * (epoch + 1)]) == list(range(100))
    assert len(data.batch_indices(0, 5, 250, 100)) == 250


def test_fit_averages_and_cuts_the_centre():
    # Stripes of two pixels, which a filter that only picks pixels would turn into one of the greys.
    stripes = np.tile(np.repeat(np.array([0, 200], np.uint8), 2), 16)[None, :, None]
    image = np.broadcast_to(stripes, (32, 64, 1))
    small = data.central_square(image, 8)
    assert small.shape == (8, 8, 1)
    assert abs(int(small[4, 4, 0]) - 100) <= 12
    # The left third black, the right third white: the central square of a 3 : 1 image is grey.
    thirds = np.repeat(np.array([0, 120, 255], np.uint8), 30)[None, :, None]
    square = data.central_square(np.broadcast_to(thirds, (30, 90, 1)), 30)
    assert set(np.unique(square)) == {120}
    colour = np.zeros((10, 20, 3), np.uint8) + np.array([10, 20, 30], np.uint8)
    np.testing.assert_array_equal(
        data.central_square(colour, 5), np.broadcast_to([10, 20, 30], (5, 5, 3))
    )
    assert data.central_square(colour, None) is colour


def test_a_folder_of_any_sizes_becomes_one_size(tmp_path):
    for i, shape in enumerate([(40, 30), (16, 16), (300, 20)]):
        _write(tmp_path / "test" / "cat" / f"{i}.png", 60 + i, shape)
    with pytest.raises(InputError, match="image_size makes them equal"):
        data.load_split("folder", "test", tmp_path)
    found = data.load_split("folder", "test", tmp_path, image_size=16)
    assert found.images.shape == (3, 16, 16, 1)
    assert found.images[:, 8, 8, 0].tolist() == [60, 61, 62]
    for size in (0, -1, 2.5):
        with pytest.raises(InputError, match="image_size"):
            data.load_split("folder", "test", tmp_path, image_size=size)
    with pytest.raises(InputError, match="images of digits have one size"):
        data.load_split("digits", "test", image_size=16)


def _write(path, value, shape=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def test_folder(tmp_path, caplog):
    for index, name in enumerate(("cat", "dog")):
        for i in range(3):
            _write(tmp_path / "train" / name / f"{i}.png", 50 * index + i)
    (tmp_path / "train" / "cat" / "broken.png").write_bytes(b"not an image")
    found = data.load_split("folder", "train", tmp_path)
    assert found.num_classes == 2
    assert sorted(found.images[:, 0, 0, 0].tolist()) == [0, 1, 2, 50, 51, 52]
    assert found.labels.tolist() == (found.images[:, 0, 0, 0] // 50).tolist()
    images, _ = found.batch(np.argmax(found.images[:, 0, 0, 0])[None])
    np.testing.assert_allclose(images, 52 / 255, rtol=1e-6)
    assert "broken.png cannot be read" in caplog.text
    assert "1 of 7 images skipped" in caplog.text


def test_colour_images_keep_their_channels(tmp_path):
    _write(tmp_path / "a.png", 7, (4, 4, 3))
    assert data.read_image(tmp_path / "a.png").shape == (4, 4, 3)
    assert data.read_image(tmp_path / "a.png", channels=1).shape == (4, 4, 1)


@pytest.mark.parametrize(
    ("name", "split", "make", "message"),
    [
        ("digits", "validation", None, "split: got 'validation'"),
        ("digits", "train[5:5]", None, "has no images"),
        ("digits", "train[", None, "expected a name or a slice"),
        ("mnist", "train", None, "data_dir: not given"),
        ("mnist", "train", "nowhere", "is not a folder"),
        ("mnist", "train", "empty", "is empty"),
        (
            "no_such_set",
            "train",
            "full",
            "dataset: 'no_such_set' is not prepared .*it holds: other",
        ),
        ("folder", "train", "full", "has no class folders"),
    ],
)
def test_bad_input_is_named(tmp_path, name, split, make, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full" / "other").mkdir(parents=True)
    folder = None if make is None else tmp_path / make
    with pytest.raises(InputError, match=message):
        data.load_split(name, split, folder)


def test_images_of_several_shapes_are_named(tmp_path):
    _write(tmp_path / "train" / "a" / "1.png", 0, (8, 8))
    _write(tmp_path / "train" / "a" / "2.png", 0, (9, 8))
    with pytest.raises(InputError, match="have shapes .* expected one"):
        data.load_split("folder", "train", tmp_path)


def test_tfds_sets_are_read_without_tensorflow(tmp_path):
    """A small set in the layout that tensorflow-datasets writes, under the name of a known one."""
    import io

    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 28, 28, 1), dtype=np.uint8)

    class Mnist(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.1")
        name = "mnist"

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(28, 28, 1)),
                        "label": tfds.features.ClassLabel(num_classes=10),
                    }
                ),
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                file = io.BytesIO()
                Image.fromarray(image[..., 0]).save(file, "PNG")
                file.seek(0)
                yield i, {"image": file, "label": i % 10}

    Mnist(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    found = data.load_split("mnist", "train", tmp_path)
    assert found.images.dtype == np.uint8
    order = [
        int(np.argmin([np.abs(im.astype(int) - o).sum() for o in images])) for im in found.images
    ]
    assert sorted(order) == list(range(20))
    assert found.labels.tolist() == [i % 10 for i in order]
    with pytest.raises(
        InputError, match=r"split: got 'test', expected one of \['train'\] for mnist"
    ):
        data.load_split("mnist", "test", tmp_path)
    lazy = data.load_split("mnist", "train[5:17]", tmp_path, lazy=True)
    assert isinstance(lazy.images, data.LazyImages)
    assert (len(lazy), lazy.image_shape) == (12, (28, 28, 1))
    np.testing.assert_array_equal(lazy.labels, found.labels[5:17])
    np.testing.assert_array_equal(lazy.images[np.array([11, 0, 3])], found.images[[16, 5, 8]])
    np.testing.assert_array_equal(lazy.images[2:4], found.images[7:9])
