"""Each corruption against its definition: moments, range, identity at severity 0, monotone damage."""

import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import purify_jax as pj
from purify_jax.checks import InputError
from purify_jax.corruptions import BENCHMARK, EXTRA, NAMES, blurs, corrupt, weather
from purify_jax.evaluation import corruption
from purify_jax.evaluation.statistics import wilson
from purify_jax.evaluation.worst_of import average

RNG = np.random.default_rng(0)
# Smooth, coloured, away from 0 and 1, so that clipping does not hide the moments.
SMOOTH = 0.3 + 0.4 * ndimage.zoom(RNG.random((4, 6, 6, 3)), (1, 32 / 6, 32 / 6, 1), order=1)


def test_the_list_is_the_published_one():
    assert len(BENCHMARK) == 15
    assert EXTRA == (
        "speckle_noise",
        "gaussian_blur",
        "spatter",
        "saturate",
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (9, 13, 3)])
def test_range_determinism_and_severity_zero(name, shape):
    images = RNG.random((3, *shape)).astype(np.float32)
    np.testing.assert_array_equal(corrupt(images, name, 0), images)
    whole = corrupt(images, name, 5, seed=3)
    assert whole.dtype == np.float32
    assert whole.shape == images.shape
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert np.abs(whole - images).max() > 1e-3 or name == "saturate"
    # An image's corruption depends on its index, not on its neighbours.
    alone = corrupt(images[2:], name, 5, seed=3, indices=[2])
    np.testing.assert_array_equal(alone[0], whole[2])


# The other five change in kind, not only in strength, from severity to severity.
@pytest.mark.parametrize(
    "name",
    sorted(set(NAMES) - {"elastic_transform", "glass_blur", "spatter", "saturate", "snow"}),
)
def test_severity_five_changes_more_than_one(name):
    distance = lambda severity: np.abs(corrupt(SMOOTH, name, severity) - SMOOTH).mean()
    assert distance(5) > distance(1)


@pytest.mark.ci
def test_noises_have_the_moments_of_their_definitions():
    flat = np.full((60, 32, 32, 3), 0.5, np.float32)
    added = {name: corrupt(flat, name, 3) - flat for name in NAMES}
    for name, deviation in {
        "gaussian_noise": 0.08,
        "shot_noise": np.sqrt(0.5 / 100),
        "speckle_noise": 0.12 * 0.5,
    }.items():
        assert abs(added[name].mean()) < 4 * deviation / np.sqrt(flat.size)
        assert added[name].std() == pytest.approx(deviation, rel=0.01)
    hit = added["impulse_noise"] != 0
    assert hit.mean() == pytest.approx(0.03, rel=0.05)
    assert (added["impulse_noise"][hit] > 0).mean() == pytest.approx(0.5, abs=0.03)


def test_blurs_keep_constants_and_the_mean_of_a_point():
    flat = np.full((1, 16, 16, 1), 0.4, np.float32)
    point = np.zeros((1, 33, 33, 1), np.float32)
    point[0, 16, 16] = 1
    for name in ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "glass_blur"):
        np.testing.assert_allclose(corrupt(flat, name, 5), flat, atol=1e-6)
        if name not in ("zoom_blur",):
            assert corrupt(point, name, 5).sum() == pytest.approx(1, abs=1e-4)
    spread = corrupt(point, "gaussian_blur", 5)[0, ..., 0]
    rows = np.arange(33) - 16
    assert (spread.sum(1) * rows**2).sum() == pytest.approx(1.0, rel=0.02)  # σ = 1 pixel
    trail = blurs.motion_kernel(9, 2.5, 0.0)
    weights = np.exp(-(np.arange(19) ** 2) / (2 * 2.5**2))
    np.testing.assert_allclose(trail[19, 19:38], weights / weights.sum(), atol=1e-12)


def test_digital_corruptions_follow_their_formulas():
    mean = SMOOTH.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(
        corrupt(SMOOTH, "contrast", 4), mean + 0.3 * (SMOOTH - mean), atol=1e-6
    )
    brighter = corrupt(SMOOTH, "brightness", 2)
    np.testing.assert_allclose(brighter.max(-1), np.minimum(SMOOTH.max(-1) + 0.1, 1), atol=1e-6)
    saturation = lambda x: 1 - x.min(-1) / x.max(-1)
    np.testing.assert_allclose(
        saturation(corrupt(SMOOTH, "saturate", 1)), 0.3 * saturation(SMOOTH), atol=1e-5
    )
    pixels = np.rint(SMOOTH[0] * 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=40)
    expected = np.asarray(PIL.Image.open(file)) / 255
    np.testing.assert_allclose(corrupt(SMOOTH, "jpeg_compression", 5)[0], expected, atol=1e-6)
    small = corrupt(SMOOTH, "pixelate", 5)
    assert len(np.unique(small[0, :, :, 0].round(4), axis=0)) == int(32 * 0.65)


def test_fog_and_plasma():
    cloud = weather.plasma(32, np.random.default_rng(1), 3.0)
    assert cloud.shape == (32, 32)
    assert cloud.min() == 0
    assert cloud.max() == 1
    # Fog of thickness c on a black image with one white pixel lifts the black by at most c/(1 + c).
    black = np.zeros((1, 32, 32, 1), np.float32)
    black[0, 0, 0] = 1
    lifted = corrupt(black, "fog", 4)
    assert 0.4 < lifted[0, 1:].max() <= 0.5 + 1e-6


def test_elastic_keeps_a_constant_and_severity_one_is_affine():
    flat = np.full((1, 16, 16, 3), 0.7, np.float32)
    for severity in range(1, 6):
        np.testing.assert_allclose(corrupt(flat, "elastic_transform", severity), flat, atol=1e-6)
    # An affine map takes a linear ramp to a linear ramp (away from the reflected edges).
    ramp = np.broadcast_to(np.linspace(0.2, 0.8, 32)[None, None, :, None], (1, 32, 32, 1))
    inside = corrupt(ramp, "elastic_transform", 1)[0, 10:22, 10:22, 0]
    second = np.diff(inside, n=2, axis=0), np.diff(inside, n=2, axis=1)
    assert max(np.abs(d).max() for d in second) < 1e-5


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 5), st.integers(8, 20), st.integers(8, 20))
def test_any_size_from_eight_works(name, severity, height, width):
    images = np.linspace(0, 1, height * width, dtype=np.float32).reshape(1, height, width, 1)
    changed = corrupt(images, name, severity)
    assert np.isfinite(changed).all()
    assert changed.shape == images.shape


@pytest.mark.parametrize(
    ("images", "name", "severity", "message"),
    [
        (np.zeros((1, 7, 8, 1), np.float32), "fog", 1, "got 7×8 pixels, expected at least 8×8"),
        (np.zeros((1, 8, 8, 2), np.float32), "fog", 1, "got 2 channels"),
        (np.zeros((1, 8, 8, 1), np.float32), "rain", 1, "got 'rain'"),
        (np.zeros((1, 8, 8, 1), np.float32), "fog", 6, "severity: got 6"),
        (np.full((1, 8, 8, 1), 255.0), "fog", 1, "expected [0, 1]"),
    ],
)
def test_bad_input_gets_one_line(images, name, severity, message):
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        corrupt(images, name, severity)
    assert message in str(error.value)


def test_mce_is_the_mean_of_ratios():
    table = lambda errors: {
        n: {s: wilson(100 - e, 100) for s, e in zip((1, 2), es, strict=True)}
        for n, es in errors.items()
    }
    baseline = table({"fog": (10, 30), "snow": (20, 20)})
    model = table({"fog": (10, 10), "snow": (30, 30)})
    assert corruption.mean_corruption_error(model, baseline) == pytest.approx((0.5 + 1.5) / 2)
    assert corruption.mean_accuracy(model) == pytest.approx(0.8)


def test_answers_under_the_benchmarks_corruptions_by_image():
    answers = {"fog 1": (True, False), "fog 2": (True, True), "spatter 1": (False, False)}
    records = [
        {"attack": cell, "index": image, "one_draw": right[image]}
        for cell, right in answers.items()
        for image in (1, 0)
    ]
    found = corruption.right_answers(records)  # spatter is none of the benchmark's
    np.testing.assert_array_equal(found, [[False, True], [True, True]])
    assert average(found).value == 0.75
    for bad, message in ((records[1:], "got 3 answers of 2 images under 2"), ([], "got 0 answers")):
        with pytest.raises(InputError, match=f"^records: {message}"):
            corruption.right_answers(bad)


def test_published_folders_are_read(tmp_path):
    images = RNG.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", np.arange(50) % 10)
    found = corruption.load_folder(tmp_path, "fog", 2)
    np.testing.assert_array_equal(found.images, images[10:20])
    np.testing.assert_array_equal(found.labels, np.arange(10, 20) % 10)
    with pytest.raises(InputError, match=r"snow\.npy is missing"):
        corruption.load_folder(tmp_path, "snow", 1)
    np.save(tmp_path / "snow.npy", images[:49])
    with pytest.raises(InputError, match="expected uint8"):
        corruption.load_folder(tmp_path, "snow", 1)


def test_evaluation_counts_and_resumes(digits_test, tmp_path):
    import jax
    import jax.numpy as jnp

    few = digits_test.take(20)
    # A classifier that knows the answer of every clean image by its pixels, hence errs on others.
    table = {few.images[i].tobytes(): int(few.labels[i]) for i in range(20)}
    known = jnp.asarray(few.images)

    def predict(keys, images):
        same = (images[:, None] == known[None]).all((2, 3, 4))
        return jnp.log(same.astype(jnp.float32) @ jax.nn.one_hot(few.labels, 10) + 1e-9)

    assert len(table) == 20
    load = lambda name, severity: corruption.corrupted_dataset(
        few, name, 0 if name == "fog" else severity
    )
    run = lambda: corruption.evaluate_corrupted(
        jax.random.key(0), {"m": predict}, load, names=("fog", "contrast"), severities=(1, 2),
        execution=pj.Execution(batch_size=8, workdir=tmp_path),
    )  # fmt: skip
    first = run()
    assert first["m"]["fog"][1].value == 1.0
    assert first["m"]["fog"][2].images == 20
    zeros = (few.labels == 0).mean()  # no match: all classes tie, argmax says 0
    assert first["m"]["contrast"][1].value == pytest.approx(zeros)
    content = (tmp_path / "records_m.jsonl").read_bytes()
    (tmp_path / "records_m.jsonl").write_bytes(content[: len(content) // 2])
    assert run() == first
    assert (tmp_path / "records_m.jsonl").read_bytes() == content
    assert pj.corruptions.SEVERITIES == (1, 2, 3, 4, 5)
