"""256×256 pixels through the whole path: a folder of photographs' sizes, ADM, DiffPure, a ResNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import purify_jax as pj
from purify_jax import attacks, diffusions
from purify_jax.networks import ADM, ResNet

ADM_TINY = ADM(features=8, multipliers=(1, 1, 2), num_blocks=1, attention_rates=(), head_channels=8)


def _model(role, network, key, **metadata):
    inputs = [jnp.full(i.shape, 0.5) for i in pj.networks.example_inputs(network, (256, 256, 3))]
    variables = jax.jit(network.init)(key, *inputs)
    # Layers that start as zero would make the network, and every gradient through it, zero.
    draws = lambda x: x + 0.03 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape)
    variables = {**variables, "params": jax.tree.map(draws, variables["params"])}
    return pj.models.Model(role, network, variables, (256, 256, 3), metadata)


@pytest.mark.slow
def test_the_whole_path_at_256_pixels(tmp_path):
    folder = tmp_path / "test" / "cat"
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for i, (height, width) in enumerate([(300, 400), (512, 256)]):
        pixels = draws.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    dataset = pj.data.load_split("folder", "test", tmp_path, image_size=256)
    images, labels = dataset.batch(np.arange(2))
    assert images.shape == (2, 256, 256, 3)

    score_model = _model(
        "diffusion", ADM_TINY, jax.random.key(0), diffusion={"form": "discrete_vp"}
    )
    classifier = _model("classifier", ResNet(4, (1, 1), 8), jax.random.key(1))
    purifier = pj.models.model_purifier(
        score_model, method="diffpure_sde", num_steps=2, noise_scale=0.2, num_restarts=1
    )
    defense = pj.Defense(purifier, pj.models.logits_fn(classifier))
    keys = pj.image_keys(jax.random.key(2), np.arange(2))
    gradient, loss = pj.jit(attacks.ExactGradient(defense))(keys, images, jnp.asarray(labels))
    assert np.isfinite(loss).all()
    # Along its own direction the gradient is the slope of the loss, by central differences.
    norms = jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3), keepdims=True))
    assert float(norms.min()) > 0
    direction = gradient / norms
    run = pj.jit(defense)
    value = lambda h: -np.asarray(run(keys, images + h * direction))[np.arange(2), labels]
    slope = (value(0.05) - value(-0.05)) / 0.1
    np.testing.assert_allclose(slope, norms[:, 0, 0, 0], rtol=0.03)


def test_a_denoiser_at_256_pixels_is_told_the_nearest_step():
    diffusion = diffusions.DiscreteVP(network=lambda x, k: jnp.zeros_like(x) + k[0])
    bars = diffusion.schedule.alphas_bar()
    sigma = jnp.full(1, float(np.sqrt((1 - bars[150]) / bars[150])))
    assert float(diffusion.noise(jnp.zeros((1, 256, 256, 3)), sigma)[0, 0, 0, 0]) == 150
