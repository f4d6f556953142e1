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
from purify_jax.purifiers import (
    DDIM,
    GDMP,
    DiffPureODE,
    DiffPureSDE,
    LikelihoodMaximisation,
    diffpure,
)

SHORT = [
    (DiffPureSDE, {"t_star": 0.05, "num_steps": 3}, 3),
    (DiffPureODE, {"t_star": 0.05, "num_steps": 3}, 3),
    (DDIM, {"num_steps": 2}, 2),
    (GDMP, {"t_star": 0.002, "num_rounds": 2}, 4),
    (LikelihoodMaximisation, {"num_steps": 2}, 2),
]
NAMES = [method.__name__ for method, _, _ in SHORT]


def purified(purifier, keys, images):
    """The images of one restart, of any value, from its own keys."""
    return purifier.replace(bounds=None)._one_restart(keys, images)[0]


@pytest.mark.ci
def test_diffpure_golden_with_its_stored_noise(golden, monkeypatch):
    data = golden("diffpure_vp")
    images, keys = nhwc(data["images01"]), keys_for(2)
    first, steps = nhwc(data["first_noise"]), nhwc(data["step_noise"])
    # A step's key is its index here, so that the stored noise can be looked up.
    monkeypatch.setattr(diffpure, "fold_keys", lambda keys, index: index)
    draw = lambda keys, images: steps[keys] if keys.ndim == 0 else first
    monkeypatch.setattr(diffpure, "normal_like", draw)
    purifier = DiffPureSDE(
        VP(bound("diffpure_vp", "score_sde")), t_star=0.02, num_steps=20, bounds=None
    )
    assert close(purifier.start(keys, images)[0], data["diffused"])
    _, (found, info) = compiled(lambda purifier: purifier(keys, images), purifier)
    assert info.step_sizes.shape == info.score_norms.shape == (20, 1, 2)
    assert close(diffusions.signed(found[0]), data["purified"])


# --- Gaussian data ----------------------------------------------------------------------------


def _samples(count=4000, spread=SPREAD):
    """Draws from the data's law, four pixels an image."""
    noise = jax.random.normal(jax.random.key(7), (count, 2, 2, 1))
    return MEAN + spread * noise


@pytest.mark.parametrize("name", ["vp", "edm"])
@pytest.mark.parametrize("method", [DiffPureSDE, DiffPureODE])
def test_purified_data_keeps_the_data_law(name, method):
    purifier = method(GAUSSIAN[name], t_star=0.3, num_steps=150)
    _, out = compiled(purified, purifier, keys_for(4000), _samples())
    # Standard errors of mean and deviation at 16,000 pixels: 0.8% and 0.6% of the spread.
    assert abs(float(out.mean()) - MEAN) < 0.03 * SPREAD
    assert abs(float(out.std()) / SPREAD - 1) < 0.03


def test_diffpure_moves_other_data_to_the_law():
    # From t = 1 nothing of the start is left.
    purifier = DiffPureSDE(GAUSSIAN["vp"], t_star=1.0, num_steps=500)
    _, out = compiled(purified, purifier, keys_for(4000), jnp.zeros((4000, 2, 2, 1)))
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
        few = [purified(DDIM(vp, t_star=t, num_steps=n), keys, images) for n in (5, 10, 80)]
        ode = DiffPureODE(vp, t_star=t, num_steps=200)
        return _flow(ode.start(keys, images)[0], t), purified(ode, keys, images), few

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
    run = lambda keys, x, g: purified(GDMP(GAUSSIAN[name], guidance=g, **settings), keys, x)
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
    purifier = GDMP(knows, t_star=0.01, num_rounds=3, guidance=0.0)
    found, info = purifier(keys_for(2), jnp.ones((2, 2, 2, 1)))
    np.testing.assert_allclose(found[0], answer, atol=1e-5)
    assert info.step_sizes.shape == (30, 1, 2)


def test_likelihood_maximisation_climbs_to_the_mode():
    images, keys = _samples(8, 0.3), keys_for(8)
    made = LikelihoodMaximisation(GAUSSIAN["edm"], step_size=0.02)
    run = lambda keys, x, n: purified(made.replace(num_steps=n), keys, x)
    _, (one, many) = compiled(lambda *both: [run(*both, n) for n in (1, 100)], keys, images)
    distance = lambda x: float(jnp.abs(x - MEAN).mean())
    assert distance(many) < 0.2 * distance(images)
    # The first Adam step is the sign of the gradient times the step size.
    np.testing.assert_allclose(jnp.abs(one - images), 0.02, rtol=1e-3)


# --- as Purifier ------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "settings", "steps"), SHORT, ids=NAMES)
def test_purifiers_have_the_librarys_form(method, settings, steps):
    purify = method(GAUSSIAN["vp"], num_restarts=2, **settings)
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
        return jnp.sum(direction * purified(method(GAUSSIAN["edm"], **settings), keys, x))

    h = 3e-3
    _, gradient = compiled(jax.grad(total), images)
    program, above = compiled(total, images + h * direction)
    numeric = (above - program(images - h * direction)) / (2 * h)
    assert float(jnp.sum(gradient * direction)) == pytest.approx(float(numeric), rel=2e-2, abs=1e-2)


@pytest.mark.ci
def test_exact_gradients_store_one_image_a_step():
    network = DDPMpp(features=8, multipliers=(1,), num_blocks=1)
    diffusion = VP(network=BoundNetwork(network=network, variables=shapes(network, 8)))
    images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)

    def memory(count):
        total = lambda diffusion, keys, x: jnp.sum(
            purified(DiffPureSDE(diffusion, num_steps=count), keys, x)
        )
        program = jax.jit(jax.grad(total, argnums=2)).lower(diffusion, keys_for(4), images)
        return program.compile().memory_analysis().temp_size_in_bytes

    stored = (100 - 10) * 4 * images.size
    assert memory(100) - stored < 1.05 * memory(10)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (DiffPureSDE, {"t_star": 1.5}, "t_star: got 1.5, expected 0.001 to 1"),
        (DiffPureSDE, {"t_star": 1e-6}, "t_star: got 1e-06"),
        (DiffPureSDE, {"end_time": 0.002}, "end_time: got 0.002"),
        (DiffPureODE, {"num_steps": 0}, "num_steps: got 0"),
        (DiffPureODE, {"num_steps": 10**6}, "num_steps: got 1000000, expected .* 1 to 100000"),
        (DDIM, {"t_star": 0.0}, "t_star: got 0"),
        (DDIM, {"num_restarts": 0}, "num_restarts: got 0"),
        (GDMP, {"t_star": 0.0}, "t_star: got 0"),
        (GDMP, {"num_rounds": 0}, "num_rounds: got 0"),
    ],
)
def test_bad_settings_are_named(method, settings, message):
    with pytest.raises(InputError, match=message):
        method(GAUSSIAN["vp"], **settings)


def test_images_of_another_rank_are_named():
    with pytest.raises(InputError, match="images: got rank 2"):
        DDIM(GAUSSIAN["vp"])(keys_for(1), jnp.ones((2, 2)))
