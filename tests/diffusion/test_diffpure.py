"""Diffusion purifiers: DiffPure's golden images, closed forms on Gaussian data, keys and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for
from test_diffusion_networks import shapes
from test_diffusions import GAUSSIAN, MEAN, SPREAD, bound, close, compiled, nhwc

from purify_jax import diffusions
from purify_jax.checks import InputError
from purify_jax.diffusions import VE, VP, BoundNetwork
from purify_jax.networks.diffusion import DDPMpp
from purify_jax.purifiers.diffpure import (
    ddim,
    diffuse,
    diffusion_purifier,
    probability_flow,
    reverse_sde,
)
from purify_jax.purifiers.guidance import guided
from purify_jax.purifiers.likelihood import likelihood_maximisation

pytestmark = pytest.mark.usefixtures("compiled_without_optimisations")

SHORT = [
    (reverse_sde, {"t_star": 0.05, "dt": 0.02}, 3),
    (probability_flow, {"t_star": 0.05, "dt": 0.02}, 3),
    (ddim, {"num_steps": 2}, 2),
    (guided, {"t_star": 0.002, "num_rounds": 2}, 4),
    (likelihood_maximisation, {"num_steps": 2}, 2),
]
NAMES = [method.__name__ for method, _, _ in SHORT]


def test_diffpure_golden_with_its_stored_noise(golden):
    data = golden("diffpure_vp")
    images, keys = nhwc(data["images01"]), keys_for(2)
    first, steps = nhwc(data["first_noise"]), nhwc(data["step_noise"])
    start = diffuse(keys, images, 0.02, first_noise=first)
    assert close(start, data["diffused"])
    run = lambda diffusion: reverse_sde(
        diffusion, keys, images, t_star=0.02, first_noise=first, step_noise=steps
    )
    _, trace = compiled(run, VP(network=bound("diffpure_vp", "score_sde")))
    assert trace.step_sizes.shape == trace.score_norms.shape == (20, 2)
    assert close(diffusions.signed(trace.images), data["purified"])


# --- Gaussian data ----------------------------------------------------------------------------


def _samples(count=4000, spread=SPREAD):
    """Draws from the data's law, four pixels an image."""
    noise = jax.random.normal(jax.random.key(7), (count, 2, 2, 1))
    return MEAN + spread * noise


@pytest.mark.parametrize("name", ["vp", "edm"])
@pytest.mark.parametrize("method", [reverse_sde, probability_flow])
def test_purified_data_keeps_the_data_law(name, method):
    run = lambda keys, x: method(GAUSSIAN[name], keys, x, t_star=0.3, dt=2e-3).images
    _, out = compiled(run, keys_for(4000), _samples())
    # Standard errors of mean and deviation at 16,000 pixels: 0.8% and 0.6% of the spread.
    assert abs(float(out.mean()) - MEAN) < 0.03 * SPREAD
    assert abs(float(out.std()) / SPREAD - 1) < 0.03


def test_reverse_sde_moves_other_data_to_the_law():
    # From t = 1 nothing of the start is left.
    run = lambda keys, x: reverse_sde(GAUSSIAN["vp"], keys, x, t_star=1.0, dt=2e-3).images
    _, out = compiled(run, keys_for(4000), jnp.zeros((4000, 2, 2, 1)))
    assert abs(float(out.mean()) - MEAN) < 0.03 * SPREAD
    assert abs(float(out.std()) / SPREAD - 1) < 0.03


def _flow(state, t):
    """Where the probability flow takes a state at t: pixels with the same place in the law."""
    schedule = diffusions.LinearSchedule()
    alpha, std = schedule.mean(t), schedule.std(t)
    spread = jnp.sqrt((alpha * 2 * SPREAD) ** 2 + std**2)
    return MEAN + SPREAD * (state - alpha * (2 * MEAN - 1)) / spread


def test_probability_flow_and_ddim_reach_the_closed_form():
    images, keys, t = _samples(8, 0.5), keys_for(8), 0.2
    vp = GAUSSIAN["vp"]

    def run(keys, images):
        few = [ddim(vp, keys, images, t_star=t, num_steps=n).images for n in (5, 10, 80)]
        flow = probability_flow(vp, keys, images, t_star=t).images
        return _flow(diffuse(keys, images, t), t), flow, few

    _, (expected, flow, few) = compiled(run, keys, images)
    np.testing.assert_allclose(flow, expected, atol=2e-3)
    errors = [float(jnp.abs(images - expected).max()) for images in few]
    # First order in the step.
    assert errors[0] < 0.1
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.2 * errors[1]


@pytest.mark.parametrize("name", ["vp", "discrete"])
def test_gdmp_without_guidance_samples_and_with_it_stays_near(name):
    settings = {"t_star": 0.2, "num_rounds": 1, "clip_denoised": False}
    run = lambda keys, x, g: guided(GAUSSIAN[name], keys, x, guidance=g, **settings).images
    images, keys = _samples(1000), keys_for(1000)
    run, free = compiled(run, keys, images, 0.0)
    assert abs(float(free.mean()) - MEAN) < 0.08 * SPREAD
    assert abs(float(free.std()) / SPREAD - 1) < 0.06
    pulled = run(keys, images, 5.0)
    distance = lambda x: float(jnp.abs(x - images).mean())
    assert distance(pulled) < 0.8 * distance(free)


def test_gdmp_rounds_begin_anew_from_the_purified_image():
    # With a denoiser that knows the answer, every round ends at it.
    answer = 0.25
    knows = VE(
        network=lambda x, condition: (
            (2 * answer - 1 - x) / (2 * jnp.exp(condition))[:, None, None, None]
        )
    )
    trace = guided(
        knows, keys_for(2), jnp.ones((2, 2, 2, 1)), t_star=0.01, num_rounds=3, guidance=0.0
    )
    np.testing.assert_allclose(trace.images, answer, atol=1e-5)
    assert trace.step_sizes.shape == (30, 2)


def test_likelihood_maximisation_climbs_to_the_mode():
    images, keys = _samples(8, 0.3), keys_for(8)
    run = lambda keys, x, n: (
        likelihood_maximisation(GAUSSIAN["edm"], keys, x, num_steps=n, step_size=0.02).images
    )
    _, (one, many) = compiled(lambda *both: [run(*both, n) for n in (1, 100)], keys, images)
    distance = lambda x: float(jnp.abs(x - MEAN).mean())
    assert distance(many) < 0.2 * distance(images)
    # The first Adam step is the sign of the gradient times the step size.
    np.testing.assert_allclose(jnp.abs(one - images), 0.02, rtol=1e-3)


# --- as Purifier ------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "settings", "steps"), SHORT, ids=NAMES)
def test_purifiers_have_the_librarys_form(method, settings, steps):
    purify = diffusion_purifier(method, GAUSSIAN["vp"], num_restarts=2, **settings)
    images = jax.random.uniform(jax.random.key(0), (3, 4, 4, 3))
    keys = keys_for(3)
    arguments = purify, keys, images
    run, (purified, info) = compiled(lambda purify, keys, x: purify(keys, x), *arguments)
    assert purified.shape == (2, 3, 4, 4, 3)
    assert float(purified.min()) >= 0
    assert float(purified.max()) <= 1
    assert info.step_sizes.shape == info.score_norms.shape == (steps, 2, 3)
    np.testing.assert_array_equal(info.active_steps, np.full((2, 3), steps))
    assert jnp.abs(purified[0] - purified[1]).max() > 1e-3
    # An image's result depends on its own key alone, not on its place in the batch.
    turned, _ = run(purify, keys[::-1], images[::-1])
    np.testing.assert_allclose(turned, purified[:, ::-1], atol=1e-5)


@pytest.mark.parametrize(("method", "settings", "steps"), SHORT, ids=NAMES)
def test_gradients_are_exact(method, settings, steps):
    keys, direction = keys_for(1), jnp.array([[[[1.0, -2.0]]]])
    images = jnp.full((1, 1, 1, 2), 0.4) + 0.1 * direction

    def total(x):
        return jnp.sum(direction * method(GAUSSIAN["edm"], keys, x, **settings).images)

    h = 3e-3
    _, gradient = compiled(jax.grad(total), images)
    program, above = compiled(total, images + h * direction)
    numeric = (above - program(images - h * direction)) / (2 * h)
    assert float(jnp.sum(gradient * direction)) == pytest.approx(float(numeric), rel=2e-2, abs=1e-2)


def test_exact_gradients_store_one_image_a_step():
    network = DDPMpp(features=8, multipliers=(1,), num_blocks=1)
    diffusion = VP(network=BoundNetwork(network=network, variables=shapes(network, 8)))
    images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)

    def memory(count):
        total = lambda diffusion, keys, x: jnp.sum(
            reverse_sde(diffusion, keys, x, dt=0.1 / count).images
        )
        program = jax.jit(jax.grad(total, argnums=2)).lower(diffusion, keys_for(4), images)
        return program.compile().memory_analysis().temp_size_in_bytes

    stored = (100 - 10) * 4 * images.size
    assert memory(100) - stored < 1.05 * memory(10)


def test_bad_settings_are_named():
    images, keys = jnp.ones((1, 2, 2, 1)), keys_for(1)
    for settings, message in (
        ({"t_star": 1.5}, "t_star: got 1.5"),
        ({"t_star": 1e-6}, "t_star: got 1e-06"),
        ({"dt": 0.0}, "dt: got 0.0"),
    ):
        with pytest.raises(InputError, match=message):
            reverse_sde(GAUSSIAN["vp"], keys, images, **settings)
    with pytest.raises(InputError, match="t_star: got 0"):
        ddim(GAUSSIAN["vp"], keys, images, t_star=0.0)
    with pytest.raises(InputError, match="num_restarts: got 0"):
        diffusion_purifier(ddim, GAUSSIAN["vp"], num_restarts=0)
    with pytest.raises(InputError, match="images: got rank 2"):
        diffusion_purifier(ddim, GAUSSIAN["vp"])(keys, jnp.ones((2, 2)))
