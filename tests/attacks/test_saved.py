"""Files of adversarial images: what is written is read, what does not fit is named."""

import numpy as np
import pytest

from purify_jax.attacks import saved as s
from purify_jax.checks import InputError

SHAPE = (4, 4, 1)


def images(count=5, epsilon=0.1, norm="linf"):
    """Images with perturbations on the sphere of ``norm``, in float32."""
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.3, 0.7, (count, *SHAPE)).astype(np.float32)
    direction = rng.normal(size=clean.shape)
    size = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    length = np.linalg.norm(direction.reshape(count, -1), size, axis=1)
    moved = clean + (epsilon * direction / length[:, None, None, None]).astype(np.float32)
    return s.SavedImages(moved, np.arange(count, dtype=np.int32), clean, epsilon, norm)


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 8 / 255), ("l2", 0.25), ("l1", 1.0)])
def test_what_is_saved_is_loaded(tmp_path, norm, epsilon):
    given = images(epsilon=epsilon, norm=norm)
    s.save(tmp_path / "a.npz", given, indices=np.arange(5))
    found = s.load(tmp_path / "a.npz", SHAPE)
    for before, after in zip(given[:3], found[:3], strict=True):
        np.testing.assert_array_equal(before, after)
    assert found[3:] == (epsilon, norm)
    np.testing.assert_allclose(s.distances(found, norm), epsilon, rtol=1e-4)


def test_files_of_others(tmp_path):
    """int64 labels, float64 images, "Linf"; and no clean images at all."""
    given = images()
    path = write(
        tmp_path / "b.npz",
        adversarial=given.adversarial.astype(np.float64),
        labels=given.labels.astype(np.int64),
        clean=given.clean,
        epsilon=np.float32(0.1),
        norm="Linf",
    )
    found = s.load(path)
    assert found.adversarial.dtype == np.float32
    assert found.labels.dtype == np.int32
    assert found.norm == "linf"
    bare = write(tmp_path / "c.npz", adversarial=given.adversarial, labels=given.labels)
    assert s.load(bare)[2:] == (None, None, None)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_outside_the_ball_is_said_how_far(tmp_path, norm):
    given = images(norm=norm)
    farther = given.adversarial.copy()
    farther[3] = given.clean[3] + 1.5 * (given.adversarial[3] - given.clean[3])
    path = write(tmp_path / "d.npz", **given._replace(adversarial=farther)._asdict())
    with pytest.raises(InputError) as error:
        s.load(path)
    assert str(error.value) == (
        f"adversarial: 1 of 5 images lie outside the ball, the farthest (number 3) at a distance {norm} "
        "of 0.15, expected at most 0.1"
    )
    with pytest.raises(InputError, match="outside the ball"):
        s.save(tmp_path / "never.npz", s.SavedImages(**given._asdict())._replace(epsilon=0.09))
    assert not (tmp_path / "never.npz").exists()


def test_a_thousandth_beyond_the_ball_is_noticed():
    given = images()
    s.check(given._replace(epsilon=0.1 - 1e-7))  # rounding
    with pytest.raises(InputError, match="outside the ball"):
        s.check(given._replace(epsilon=0.0999))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adversarial": None}, "lacks ['adversarial'] (it holds ['clean', 'epsilon', 'labels', 'norm'])"),
        ({"labels": None}, "lacks ['labels']"),
        ({"labels": np.arange(4)}, "labels: got shape (4,) for 5 images, expected one each"),
        ({"labels": np.full(5, 0.5)}, "labels: got float64 of shape (5,), expected whole numbers"),
        ({"adversarial": np.zeros((5, 1, 4, 4), "f")}, "adversarial: got (1, 4, 4) per image, expected "
         "(4, 4, 1) (channels first? transpose to channels last)"),
        ({"adversarial": np.zeros((5, 8, 8, 1), "f")}, "got (8, 8, 1) per image, expected (4, 4, 1)"),
        ({"adversarial": np.zeros((4, 4), "f")}, "adversarial: got rank 2"),
        ({"adversarial": np.full((5, 4, 4, 1), 255, np.uint8)}, "adversarial: got dtype uint8, expected"),
        ({"adversarial": np.full((5, 4, 4, 1), 1.2)}, "adversarial: values lie in [1.2, 1.2], expected"),
        ({"adversarial": np.full((5, 4, 4, 1), np.nan)}, "adversarial: 80 pixels are NaN"),
        ({"clean": np.zeros((4, 4, 4, 1))}, "clean: got shape (4, 4, 4, 1), expected adversarial's"),
        ({"clean": None}, "clean: missing, expected the clean images beside epsilon and norm"),
        ({"epsilon": None}, "epsilon: missing, expected epsilon and norm together or none"),
        ({"norm": None}, "norm: missing, expected epsilon and norm together or none"),
        ({"norm": "l7"}, "norm: got 'l7', expected one of ['l1', 'l2', 'linf']"),
        ({"epsilon": -1.0}, "epsilon: got -1.0, expected a finite number >= 0"),
        ({"epsilon": np.ones(5)}, "epsilon: got shape (5,), expected a single value"),
        ({"epsilon": "wide"}, "epsilon: got 'wide', expected a number"),
    ],
)  # fmt: skip
def test_bad_files_get_one_line(tmp_path, change, message):
    arrays = {**images()._asdict(), **change}
    path = write(tmp_path / "bad.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(InputError) as error:
        s.load(path, SHAPE)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"images: .*nowhere.npz is not a file"):
        s.load(tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(InputError, match="is not a readable .npz"):
        s.load(tmp_path / "text.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(InputError, match="is a single array, expected an .npz with names"):
        s.load(tmp_path / "single.npy")
    np.savez(tmp_path / "pickled.npz", adversarial=np.array([{}], object), labels=np.zeros(1, int))
    with pytest.raises(InputError, match="is not a readable .npz"):
        s.load(tmp_path / "pickled.npz")
    whole = write(tmp_path / "torn.npz", **images()._asdict()).read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a readable .npz"):
        s.load(tmp_path / "torn.npz")
