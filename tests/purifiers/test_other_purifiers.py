"""Samplers against closed forms, filters against scipy and Pillow, all of them under attack."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from conftest import keys_for
from scipy import ndimage

import purify_jax as pj
from purify_jax import energy, purifiers
from purify_jax.checks import InputError

MEAN = jnp.array([0.3, 0.7]).reshape(2, 1, 1)
COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.4]])
ENERGY = energy.gaussian_energy(MEAN, jnp.asarray(np.linalg.inv(COVARIANCE)))
SCORE = energy.score_from_energy(ENERGY)


def gaussian_score(spread):
    """The score of N(0.5, spread²) data smoothed by σ."""
    return lambda images, sigma: (0.5 - images) / (spread**2 + sigma**2)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("sampler", "step_size", "tolerance"),
    [
        (lambda **k: purifiers.Langevin(SCORE, **k), 0.15, 0.02),
        (lambda **k: purifiers.MALA(SCORE, ENERGY, **k), 0.6, 0.02),
        (lambda **k: purifiers.MALA(SCORE, **k), 0.6, 0.02),  # trapezoid rule: exact here
    ],
)
def test_chains_reach_the_mean_and_covariance_of_a_gaussian(sampler, step_size, tolerance):
    chain = sampler(step_size=step_size, num_steps=400, bounds=None)
    start = jnp.full((20_000, 2, 1, 1), 0.5)
    samples, _ = jax.jit(chain)(keys_for(20_000), start)
    flat = np.asarray(samples[0]).reshape(-1, 2)
    # Standard errors: 0.005 of a mean, 0.005 of a variance; the rest is the chain's own bias.
    np.testing.assert_allclose(flat.mean(0), MEAN.ravel(), atol=tolerance)
    np.testing.assert_allclose(np.cov(flat.T), COVARIANCE, atol=tolerance)


@pytest.mark.ci
def test_mala_corrects_the_bias_of_large_steps():
    variance = 0.2
    score = lambda x: -x / variance
    start = jnp.zeros((20_000, 1, 1, 1))
    run = lambda sampler: np.asarray(
        jax.jit(sampler(score, step_size=0.5, num_steps=300, bounds=None))(keys_for(20_000), start)[
            0
        ]
    ).var()
    # Langevin's stationary variance is τ²/(1 − (1 − τ²/2v)²), from x ← (1 − τ²/2v)x + τn.
    shrink = 1 - 0.25 / (2 * variance)
    assert run(purifiers.Langevin) == pytest.approx(0.25 / (1 - shrink**2), rel=0.04)
    assert run(purifiers.MALA) == pytest.approx(variance, rel=0.04)


@pytest.mark.ci
def test_temperature_scales_the_variance():
    start = jnp.zeros((20_000, 1, 1, 1))
    chain = purifiers.Langevin(
        lambda x: -x, step_size=0.2, num_steps=400, temperature=0.25, bounds=None
    )
    assert np.asarray(chain(keys_for(20_000), start)[0]).var() == pytest.approx(0.25, rel=0.06)


def test_probability_flow_transports_a_gaussian_in_closed_form():
    spread, sigmas = 0.3, np.geomspace(1.0, 0.01, 400)
    flow = purifiers.ProbabilityFlow(gaussian_score(spread), sigmas.tolist(), bounds=None)
    images = jnp.full((64, 1, 1, 1), 0.2)
    end = np.asarray(jax.jit(flow)(keys_for(64), images)[0])[0].ravel()
    # The same noise, then x ↦ μ + (x − μ)·spread/√(spread² + σ²).
    only_noise = purifiers.ProbabilityFlow(lambda x, s: jnp.zeros_like(x), [1.0], bounds=None)
    noisy = np.asarray(only_noise(keys_for(64), images)[0])[0].ravel()
    expected = 0.5 + (noisy - 0.5) * spread / np.sqrt(spread**2 + 1)
    np.testing.assert_allclose(end, expected, atol=0.01)


def test_reverse_sde_samples_the_data():
    spread, sigmas = 0.3, np.geomspace(3.0, 0.01, 200).tolist()
    sde = purifiers.ReverseSDE(gaussian_score(spread), sigmas, bounds=None)
    end = np.asarray(jax.jit(sde)(keys_for(20_000), jnp.full((20_000, 1, 1, 1), 0.5))[0])
    assert end.mean() == pytest.approx(0.5, abs=0.01)
    assert end.std() == pytest.approx(spread, rel=0.03)


def test_tweedie_is_the_posterior_mean():
    spread, sigma = 0.1, 0.2
    images = jnp.full((32, 1, 1, 1), 0.4)
    noise = purifiers.tweedie(lambda x, s: jnp.zeros_like(x), sigma)
    denoise = purifiers.tweedie(gaussian_score(spread), sigma)
    noisy, mean = (np.asarray(p(keys_for(32), images)[0]) for p in (noise, denoise))
    weight = spread**2 / (spread**2 + sigma**2)
    inside = (noisy > 0) & (noisy < 1)  # the other purifier clips
    np.testing.assert_allclose(mean[inside], (0.5 + weight * (noisy - 0.5))[inside], atol=1e-6)


def test_denoising_adds_no_noise_and_takes_away_its_level():
    spread, sigma = 0.1, 0.2
    images = jnp.linspace(0.2, 0.8, 7).reshape(7, 1, 1, 1)
    made = purifiers.Denoiser(gaussian_score(spread), (sigma,))
    found = np.asarray(made(keys_for(7), images)[0])[0]
    weight = spread**2 / (spread**2 + sigma**2)
    np.testing.assert_allclose(found, 0.5 + weight * (np.asarray(images) - 0.5), atol=1e-6)
    assert made.is_deterministic
    np.testing.assert_array_equal(found, np.asarray(made(keys_for(7, seed=1), images)[0])[0])


@pytest.mark.ci
def test_annealed_descends_and_langevin_keeps_the_spread():
    score, images = gaussian_score(0.1), jnp.full((5000, 1, 1, 1), 0.5)
    ladder = np.geomspace(0.3, 0.02, 10).tolist()
    cold = purifiers.Annealed(score, ladder, steps_per_level=20)
    warm = purifiers.Annealed(score, ladder, steps_per_level=200, rate=0.05, temperature=1.0)
    stds = [float(np.std(jax.jit(p)(keys_for(5000), images)[0])) for p in (cold, warm)]
    assert stds[0] < 0.02
    assert stds[1] == pytest.approx(0.1, rel=0.08)


def test_gradual_noise_is_its_stages_one_after_the_other():
    score = gaussian_score(0.2)
    purifier = purifiers.GradualNoise(score, [jnp.geomspace(s, 0.05, 3) for s in (0.1, 0.2)])
    purified, info = purifier(keys_for(4), jnp.full((4, 2, 2, 1), 0.5))
    ladders = [np.append(np.geomspace(s, 0.05, 3), 0) for s in (0.1, 0.2)]
    sizes = np.concatenate([ladder[:-1] * -np.diff(ladder) for ladder in ladders])
    np.testing.assert_allclose(info.step_sizes[:, 0, 0], sizes, rtol=1e-5)
    assert purified.shape == (1, 4, 2, 2, 1)
    assert np.ptp(np.asarray(purified)) > 0


def test_blur_equals_scipy():
    images = np.random.default_rng(0).random((2, 9, 12, 3)).astype(np.float32)
    blurred = purifiers.gaussian_blur(1.3)(keys_for(2), jnp.asarray(images))[0][0]
    expected = ndimage.gaussian_filter(images, (0, 1.3, 1.3, 0), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(blurred, expected, atol=1e-6)


@pytest.mark.parametrize("quality", [10, 50, 90])
@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (11, 17, 1)])
def test_jpeg_equals_pillow(quality, shape):
    coarse = np.random.default_rng(1).random((6, 6, shape[-1]))
    image = ndimage.zoom(coarse, (shape[0] / 6, shape[1] / 6, 1), order=1).clip(0, 1)
    pixels = np.rint(image * 255).astype(np.uint8)
    file = io.BytesIO()
    picture = PIL.Image.fromarray(pixels if shape[-1] == 3 else pixels[..., 0])
    picture.save(file, "JPEG", quality=quality, subsampling=0)
    expected = np.asarray(PIL.Image.open(file), float).reshape(shape)
    ours = pj.purifiers.jpeg(quality)(keys_for(1), jnp.asarray(pixels[None] / 255.0, jnp.float32))[
        0
    ]
    difference = np.abs(np.asarray(ours)[0, 0] * 255 - expected)
    # Pillow's integer transform rounds a few coefficients on a boundary the other way.
    assert np.mean(difference <= 2.01) > 0.96
    assert difference.mean() < 0.6


def all_baselines(score):
    still = lambda x: score(x, 0.1)
    return {
        "langevin": purifiers.Langevin(still, step_size=0.03, num_steps=4, num_restarts=2),
        "mala": purifiers.MALA(still, step_size=0.03, num_steps=4),
        "tweedie": purifiers.tweedie(score, 0.2, num_restarts=2),
        "annealed": purifiers.Annealed(score, (0.2, 0.1), temperature=0.5),
        "probability flow": purifiers.ProbabilityFlow(score, (0.2, 0.1)),
        "reverse SDE": purifiers.ReverseSDE(score, (0.2, 0.1)),
        "gradual": purifiers.GradualNoise(score, [(0.1, 0.05), (0.2, 0.05)]),
        "blur": purifiers.gaussian_blur(0.7),
        "jpeg": pj.purifiers.jpeg(60),
    }


@pytest.mark.ci
def test_every_purifier_is_attacked_by_the_same_code(models, digits_test):
    score_model, classifier = models
    score, logits_fn = pj.models.noise_score(score_model), pj.models.logits_fn(classifier)
    images, labels = digits_test.batch(np.arange(4))
    images = jnp.asarray(images)
    for name, purifier in all_baselines(score).items():
        defense = pj.Defense(purifier, logits_fn)

        @jax.jit
        def run(keys, images, labels, purifier=purifier, defense=defense):
            slope, _ = pj.attacks.ExactGradient(defense)(keys, images, labels)
            return *purifier(keys, images), slope

        purified, info, slope = run(keys_for(4), images, labels)
        assert purified.shape[1:] == images.shape, name
        assert info.active_steps.shape[1] == 4, name
        assert 0 <= float(purified.min()) <= float(purified.max()) <= 1, name
        assert 0 < float(np.abs(slope).max()) < np.inf, name
        # Keys alone decide: an image at another place of the batch is purified alike.
        turned, *_ = run(keys_for(4)[::-1], images[::-1], labels[::-1])
        np.testing.assert_allclose(turned[:, ::-1], purified, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", ["langevin", "annealed", "probability flow", "gradual"])
def test_gradients_against_central_differences(name):
    with jax.enable_x64(True):
        target = jnp.asarray(np.random.default_rng(2).random((1, 3, 3, 1)))
        score = lambda x, s: jnp.tanh(target - x) / (0.3 + jnp.asarray(s, x.dtype)) ** 2
        purifier = all_baselines(score)[name]
        value = jax.jit(lambda x: jnp.sum(purifier(keys_for(1), x)[0] ** 3))
        x = jnp.full((1, 3, 3, 1), 0.5, jnp.float64)
        direction = jnp.asarray(np.random.default_rng(3).normal(size=x.shape))
        slope = float(jnp.sum(jax.jit(jax.grad(value))(x) * direction))
        delta = 1e-5
        numeric = float(value(x + delta * direction) - value(x - delta * direction)) / (2 * delta)
        assert slope == pytest.approx(numeric, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda s: purifiers.ProbabilityFlow(s, (0.1, 0.2)),
            "sigmas: got (0.1, 0.2), expected positive levels, largest first",
        ),
        (lambda s: purifiers.GradualNoise(s, ()), "sigmas: got ()"),
        (lambda s: purifiers.tweedie(s, -1.0), "sigmas: got (-1.0,)"),
        (lambda s: purifiers.Langevin(s, step_size=-1, num_steps=3), "step_size: got -1"),
        (lambda s: purifiers.gaussian_blur(-1), "sigma: got -1"),
        (lambda s: pj.purifiers.jpeg(0), "quality: got 0"),
    ],
)
def test_bad_settings_get_one_line(make, message):
    with pytest.raises(InputError) as error:
        make(gaussian_score(0.1))
    assert message in str(error.value)


def test_methods_by_name_are_these_purifiers(models, digits_test):
    score_model, _ = models
    images = jnp.asarray(digits_test.batch(np.arange(3))[0])
    named = pj.models.model_purifier(score_model, method="tweedie", noise_scale=0.2, num_restarts=2)
    direct = purifiers.tweedie(pj.models.noise_score(score_model), 0.2, num_restarts=2)
    found, expected = (jax.jit(p)(keys_for(3), images)[0] for p in (named, direct))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for method, about in pj.models.METHODS.items():
        few = {"num_steps": 3, "num_restarts": 2}
        used = {name: value for name, value in few.items() if name in about.settings}
        purifier = pj.models.model_purifier(score_model, method=method, **used)
        purified, info = jax.eval_shape(purifier, keys_for(3), images)
        restarts = 1 if method == "denoise" else 2  # it draws nothing that could differ
        assert purified.shape == (restarts, *images.shape), method
        assert info.step_sizes.shape[1:] == (restarts, 3), method
    with pytest.raises(InputError, match="method: got 'magic', expected one of"):
        pj.models.model_purifier(score_model, method="magic")
    with pytest.raises(InputError, match="not ADP"):
        pj.models.adp_purifier(score_model, method="langevin")
