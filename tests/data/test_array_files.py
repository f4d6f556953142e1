"""Files of arrays that broke, or hold something else: read where that is clear, else one line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purify_jax.attacks import saved
from purify_jax.checks import InputError
from purify_jax.data.array_files import as_labels
from purify_jax.evaluation import adversarial
from purify_jax.evaluation.corruption import load_folder

IMAGES = np.arange(5 * 2 * 4 * 4 * 1, dtype=np.uint8).reshape(10, 4, 4, 1)
LABELS = np.arange(10)


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "labels.npy", LABELS)
    np.save(tmp_path / "fog.npy", IMAGES)
    return tmp_path


@pytest.mark.parametrize(
    "labels",
    [LABELS.astype(np.uint8), LABELS.astype(np.float64), LABELS[:, None], np.eye(10), np.eye(10, dtype=bool)],
)  # fmt: skip
def test_labels_of_any_form(folder, labels):
    np.save(folder / "labels.npy", labels)
    found = load_folder(folder, "fog", 2)
    assert found.labels.tolist() == [2, 3]
    np.testing.assert_array_equal(found.images, IMAGES[2:4])


def test_images_as_floats(folder):
    np.save(folder / "fog.npy", (IMAGES / 255).astype(np.float16))
    found = load_folder(folder, "fog", 1)
    np.testing.assert_allclose(found.batch(np.arange(2))[0], IMAGES[:2] / 255, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("fog", IMAGES.astype(np.float32), "divide them by 255"),
        ("fog", IMAGES.astype(np.int64), "is int64 .*expected uint8, or floats"),
        ("fog", IMAGES.astype(complex), "is complex128"),
        ("fog", np.moveaxis(np.zeros((5, 8, 8, 3), np.uint8), -1, 1), "expected channels last"),
        ("fog", IMAGES[:7], r"is uint8 .7, 4, 4, 1.*5·n"),
        ("fog", IMAGES[:0], r"is uint8 .0, 4, 4, 1"),
        ("fog", np.array(3), r"is int64 \(\)"),
        ("fog", np.array([{}]), "not a readable .npy: .*objects"),
        ("labels", np.array(["cat"] * 10), "labels.npy: got <U3"),
        ("labels", LABELS + 0.5, "expected whole numbers"),
        ("labels", np.ones((10, 10)), "rows of 10 that are not one-hot"),
        ("labels", LABELS + 1, "counted from 1. subtract 1"),
        ("labels", LABELS[:4], "has shape .4,., expected .2,. or .10,."),
    ],
)  # fmt: skip
def test_odd_arrays_get_one_line(folder, name, array, message):
    np.save(folder / f"{name}.npy", array)
    with pytest.raises(InputError, match=message) as error:
        load_folder(folder, "fog", 5)
    assert "\n" not in str(error.value)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_files_of_any_bytes_get_one_line(tmp_path_factory, content):
    """Nothing but a whole file is read, whatever numpy raises for it."""
    folder = tmp_path_factory.getbasetemp() / "bytes"
    folder.mkdir(exist_ok=True)
    np.save(folder / "labels.npy", LABELS)
    for start in (b"", b"\x93NUMPY\x01\x00v\x00", b"PK\x03\x04"):
        for name in ("fog.npy", "a.npz"):
            (folder / name).write_bytes(start + content)
        for read in (
            lambda: load_folder(folder, "fog", 1),
            lambda: saved.load(folder / "a.npz"),
            lambda: adversarial.read_npz(folder / "a.npz"),
        ):
            with pytest.raises(InputError) as error:
                read()
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.99])
def test_cut_files_get_one_line(folder, share):
    np.savez(folder / "a.npz", adversarial=IMAGES / 255, labels=LABELS, images=IMAGES)
    for name in ("fog.npy", "a.npz"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])
    said = "is empty .0 bytes., expected an .np[yz]: download" if share == 0 else "not a readable"
    for read in (lambda: load_folder(folder, "fog", 1), lambda: saved.load(folder / "a.npz")):
        with pytest.raises(InputError, match=said):
            read()


def test_an_archive_is_no_array(folder):
    np.savez(folder / "x.npz", a=LABELS)
    (folder / "x.npz").rename(folder / "fog.npy")
    with pytest.raises(InputError, match="is an archive of arrays, expected a single one"):
        load_folder(folder, "fog", 1)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_labels_keep_their_values(values):
    one_hot = np.eye(6)[values]
    for form in (np.array(values), np.array(values, float), np.array(values)[:, None], one_hot):
        assert as_labels(form, "labels").tolist() == values
