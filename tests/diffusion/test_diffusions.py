"""Denoisers and scores: golden outputs and gradients, closed forms on Gaussian data, units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from jax.tree_util import Partial

from purify_jax import diffusions
from purify_jax.diffusions import EDM, VE, VP, BoundNetwork, DiscreteVP, LinearSchedule
from purify_jax.models import torch_weights


def compiled(function, *arguments):
    """The function compiled for such arguments, and its values at them."""
    program = jax.jit(function).lower(*arguments).compile()
    return program, program(*arguments)


def nhwc(array):
    return jnp.asarray(np.moveaxis(array, -3, -1), jnp.float32)


def bound(name, kind, **fields):
    state = torch_weights.read(ROOT / "tests" / "golden" / f"{name}.npz")
    model, _ = torch_weights.import_model(kind, state, **fields)
    return BoundNetwork(network=model.network, variables=model.variables)


def close(found, expected):
    expected = nhwc(expected)
    return float(jnp.abs(found - expected).max()) < 1e-4 * float(jnp.abs(expected).max())


def output_and_gradient(network, use, images, weights):
    """(use(network, images), the network's own raw output, ∇ Σ weights × use)."""

    def scalar(images, network):
        raw = []
        spy = lambda x, condition: raw.append(network(x, condition)) or raw[0]
        output = use(spy, images)
        return jnp.sum(weights * output), (output, raw[0])

    _, (gradient, (output, raw)) = compiled(jax.grad(scalar, has_aux=True), images, network)
    return output, raw, gradient


@pytest.mark.ci
@pytest.mark.parametrize("name", ["edm_ddpmpp", "edm_ncsnpp"])
def test_edm_golden(golden, name):
    data = golden(name)
    sigma = jnp.asarray(data["condition"])
    # Through the public units: pixels in [0, 1], in which the noise is half as large.
    use = lambda network, u: diffusions.signed(
        EDM(network=network)(diffusions.pixels(u), sigma / 2)
    )
    denoised, raw, gradient = output_and_gradient(
        bound(name, "edm"), use, nhwc(data["input"]), nhwc(data["weights"])
    )
    assert close(raw, data["network_output"])
    assert close(denoised, data["denoised"])
    assert close(gradient, data["input_gradient"])


@pytest.mark.ci
def test_edm_golden_with_and_without_classes(golden):
    data = golden("edm_ddpmpp_cond")
    network = bound("edm_ddpmpp_cond", "edm")
    # The second half of the batch has no class.
    labels = jnp.concatenate([jnp.asarray(data["labels"], jnp.int32), jnp.full(2, -1)])
    network = network.replace(labels=labels)
    images = jnp.tile(nhwc(data["input"]), (2, 1, 1, 1))
    sigma = jnp.tile(jnp.asarray(data["condition"]), 2)
    denoise = lambda d, x: diffusions.signed(d(diffusions.pixels(x), sigma / 2))
    _, found = compiled(denoise, EDM(network=network), images)
    assert close(found[:2], data["denoised"])
    assert close(found[2:], data["denoised_no_label"])


@pytest.mark.ci
def test_score_sde_golden(golden):
    data = golden("score_sde_ddpmpp")
    t = jnp.asarray(data["condition"])
    std = VP(network=None).schedule.std(t)[:, None, None, None]
    use = lambda network, state: -VP(network=network).noise_at(state, t) / std
    score, raw, gradient = output_and_gradient(
        bound("score_sde_ddpmpp", "score_sde"), use, nhwc(data["input"]), nhwc(data["weights"])
    )
    assert close(raw, data["network_output"])
    assert close(score, data["score"])
    assert close(gradient, data["input_gradient"])


@pytest.mark.ci
def test_guided_diffusion_golden(golden):
    data = golden("guided_diffusion")
    steps = jnp.asarray(data["condition"], jnp.float32)
    network = bound("guided_diffusion", "guided_diffusion", head_channels=16)
    images = nhwc(data["input"])
    # The golden weights are on all six channels, so the network itself is called.
    use = lambda network, x: network(x, steps)
    output, _, gradient = output_and_gradient(network, use, images, nhwc(data["weights"]))
    assert close(output, data["network_output"])
    assert close(gradient, data["input_gradient"])
    # As a diffusion: step k's own noise level gives ε̂ = the first three channels at k.
    fixed = lambda x, condition: jnp.where((condition == steps)[:, None, None, None], output, 0.0)
    bars = jnp.asarray(LinearSchedule().alphas_bar(), jnp.float32)[data["condition"]]
    sigma = jnp.sqrt((1 - bars) / bars)
    noise = DiscreteVP(network=fixed).noise(images, sigma)
    np.testing.assert_array_equal(noise, output[..., :3])


# --- closed forms -----------------------------------------------------------------------------

MEAN, SPREAD = 0.6, 0.2  # of Gaussian pixels


def _signed_noise(u, sigma):
    """ε̂ of signed Gaussian data in u = clean + σ·ε, and the means to undo each preconditioning."""
    sigma = sigma[:, None, None, None]
    return sigma * (u - (2 * MEAN - 1)) / (sigma**2 + (2 * SPREAD) ** 2)


def _edm(x, condition):
    sigma = jnp.exp(4 * condition)
    root = jnp.sqrt(sigma**2 + 0.25)[:, None, None, None]
    u = x * root
    denoised = u - sigma[:, None, None, None] * _signed_noise(u, sigma)
    skip = 0.25 / root**2
    return (denoised - skip * u) / (0.5 * sigma[:, None, None, None] / root)


def _vp(x, condition):
    t = condition / 999
    u = x / LinearSchedule().mean(t)[:, None, None, None]
    return _signed_noise(u, LinearSchedule().sigma(t))


def _discrete(x, condition):
    bar = jnp.asarray(LinearSchedule().alphas_bar())[condition.astype(int)]
    u = x / jnp.sqrt(bar)[:, None, None, None]
    noise = _signed_noise(u, jnp.sqrt((1 - bar) / bar))
    return jnp.concatenate([noise, jnp.full_like(noise, jnp.nan)], axis=-1)


def _ve(x, condition):
    return -_signed_noise(x, 2 * jnp.exp(condition))


GAUSSIAN = {
    "edm": EDM(network=Partial(_edm)),
    "vp": VP(network=Partial(_vp)),
    "discrete": DiscreteVP(network=Partial(_discrete)),
    "ve": VE(network=Partial(_ve)),
}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_gaussian_posterior_mean_and_score_in_pixels(name):
    diffusion = GAUSSIAN[name]
    images = jax.random.uniform(jax.random.key(0), (3, 2, 2, 3))
    bars = LinearSchedule().alphas_bar()[[20, 300, 600]]
    sigma = jnp.asarray(0.5 * np.sqrt((1 - bars) / bars), jnp.float32)
    if name == "discrete":
        np.testing.assert_array_equal(diffusion.step(2 * sigma), [20, 300, 600])
    _, (found, denoised, one, both) = compiled(
        lambda x, sigma: (
            diffusion.score(x, sigma),
            diffusion(x, sigma),
            diffusions.ScoreAt(diffusions.noise_score(diffusion), sigma[1])(x[1:2]),
            diffusions.noise_score(diffusion)(x, sigma),
        ),
        images,
        sigma,
    )
    images, level = np.asarray(images), np.asarray(sigma)[:, None, None, None]
    score = (MEAN - images) / (SPREAD**2 + level**2)
    np.testing.assert_allclose(found, score, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(denoised, images + level**2 * score, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(one, found[1:2], rtol=1e-5)
    np.testing.assert_array_equal(both, found)


@pytest.mark.parametrize("name", GAUSSIAN)
def test_noise_of_a_variance_preserving_state(name):
    diffusion, t = GAUSSIAN[name], jnp.array([0.05, 0.4])
    state = jax.random.normal(jax.random.key(0), (2, 2, 2, 3))
    alpha, std = (f(t)[:, None, None, None] for f in (LinearSchedule().mean, LinearSchedule().std))
    # The state's law is Gaussian too: ε̂ = std·(state − α·mean)/(std² + α²·spread²).
    expected = std * (state - alpha * (2 * MEAN - 1)) / (std**2 + (2 * alpha * SPREAD) ** 2)
    tolerance = 1e-2 if name == "discrete" else 1e-4  # the nearest step is not quite at t
    _, found = compiled(diffusion.noise_at, state, t)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-4)


def test_schedule_inverts_and_agrees_with_its_discrete_steps():
    schedule = LinearSchedule()
    t = jnp.geomspace(1e-5, 1.0, 50)
    np.testing.assert_allclose(schedule.time(schedule.sigma(t)), t, rtol=1e-5)
    np.testing.assert_allclose(schedule.mean(t) ** 2 + schedule.std(t) ** 2, 1, rtol=1e-5)
    assert schedule.betas()[0] == pytest.approx(1e-4)
    assert schedule.betas()[-1] == pytest.approx(0.02)
    bars = schedule.alphas_bar()
    continuous = schedule.mean(jnp.arange(1, 1001) / 1000) ** 2
    np.testing.assert_allclose(np.sqrt(bars), np.sqrt(continuous), atol=2e-3)
    levels = jnp.asarray(np.sqrt((1 - bars) / bars), jnp.float32)
    np.testing.assert_array_equal(DiscreteVP(network=None).step(levels), np.arange(1000))


def test_images_and_signed_are_inverse():
    images = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(diffusions.pixels(diffusions.signed(images)), images, atol=1e-7)
    assert float(diffusions.signed(images).min()) == -1


def test_variables_are_leaves_and_new_ones_do_not_compile_again():
    class Scale:
        def __init__(self):
            self.traces = 0

        def apply(self, variables, images, condition):
            self.traces += 1
            return variables["scale"] * images

    network = Scale()
    make = lambda scale: VE(
        network=BoundNetwork(network=network, variables={"scale": jnp.float32(scale)})
    )
    run = jax.jit(lambda score, x: score(x))
    images = jnp.ones((1, 2, 2, 1))
    score = lambda scale: diffusions.ScoreAt(diffusions.noise_score(make(scale)), 0.1)
    first, second = (run(score(s), images) for s in (1.0, 2.0))
    np.testing.assert_allclose(second, 2 * first)
    assert network.traces == 1
    assert len(jax.tree.leaves(score(1.0))) == 2
