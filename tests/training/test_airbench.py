"""The short recipe: closed forms of its parts, and a training that learns."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import apply

import purify_jax as pj
from purify_jax import data, models, networks, training
from purify_jax.keys import image_keys
from purify_jax.networks import convolution
from purify_jax.training import AirbenchSettings, airbench, augmentation, optimizers

SMALL = networks.WhitenedConvNet(features=(8, 12, 16))


def test_the_first_half_of_the_filters_whitens_the_patches():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 3))
    images = rng.normal(size=(64, 12, 10, 3)) @ mixing + 0.3
    filters = airbench.whitening_filters(images, epsilon=0.0)
    responses = convolution.convolve(jnp.asarray(images, jnp.float32), filters, padding="VALID")
    responses = np.asarray(responses, np.float64).reshape(-1, 24)
    moment = responses[:, :12].T @ responses[:, :12] / len(responses)
    np.testing.assert_allclose(moment, np.eye(12), atol=2e-4)
    np.testing.assert_allclose(responses[:, 12:], -responses[:, :12], atol=1e-4)


def test_epsilon_damps_directions_by_their_variance():
    images = np.random.default_rng(0).normal(size=(200, 9, 9, 1)) * 0.1  # patches: variance 0.01
    filters = np.asarray(airbench.whitening_filters(images, epsilon=0.03)).reshape(4, 8)
    # An orthogonal basis over sqrt(0.01 + 0.03).
    np.testing.assert_allclose(np.linalg.norm(filters, axis=0), 5.0, rtol=0.02)


def test_flips_alternate_between_epochs_from_a_random_start():
    images = jax.random.uniform(jax.random.key(0), (400, 4, 4, 3))
    mirrored = np.asarray(images)[:, :, ::-1]
    indices = jnp.arange(400) + 7
    seen = [
        np.asarray(
            augmentation.alternating_flip(jax.random.key(1), images, indices, jnp.full(400, epoch))
        )
        for epoch in range(3)
    ]
    was_mirrored = (seen[0] == mirrored).all(axis=(1, 2, 3))
    assert 140 < was_mirrored.sum() < 260
    np.testing.assert_array_equal(seen[1], seen[0][:, :, ::-1])
    np.testing.assert_array_equal(seen[2], seen[0])
    # By the image's index, not by its place in the batch.
    turned = augmentation.alternating_flip(
        jax.random.key(1), images[::-1], indices[::-1], jnp.zeros(400, jnp.int32)
    )
    np.testing.assert_array_equal(turned[::-1], seen[0])


def test_crops_are_windows_of_the_reflected_image():
    image = np.arange(25.0, dtype=np.float32).reshape(5, 5, 1)
    keys = image_keys(jax.random.key(0), jnp.arange(200))
    crops = np.asarray(
        augmentation.random_crop(keys, jnp.tile(image, (200, 1, 1, 1)), 2, "reflect")
    )
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = {padded[i : i + 5, j : j + 5].tobytes() for i in range(5) for j in range(5)}
    assert {crop.tobytes() for crop in crops} == windows


def _orthogonalised(matrix, num_steps):
    kernel = matrix.reshape(1, 1, *matrix.shape)
    rule = optimizers.orthogonalised_momentum(0.9, num_steps)
    return np.asarray(jax.jit(rule.update)(kernel, rule.init(kernel))[0][0, 0])


def test_orthogonalised_brings_singular_values_near_one_and_keeps_directions():
    rng = np.random.default_rng(0)
    left, _, right = np.linalg.svd(rng.normal(size=(6, 40)), full_matrices=False)
    values = np.array([1.0, 0.9, 0.8, 0.6, 0.5, 0.4])
    matrix = jnp.asarray(left * values @ right, jnp.float32)
    for given in (matrix, matrix.T):
        result = _orthogonalised(given, 3)
        result = result if given is matrix else result.T
        inside = left.T @ result @ right.T
        assert np.all((np.diag(inside) > 0.6) & (np.diag(inside) < 1.3))
        np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-4)
    # One step on a single row is the polynomial at 1.
    one = _orthogonalised(jnp.asarray([[3.0, 4.0]]), 1)
    np.testing.assert_allclose(one, (3.4445 - 4.7750 + 2.0315) * np.array([[0.6, 0.8]]), rtol=1e-5)


def test_muon_steps_by_hand():
    """Kernels of one output: a row, whose orthogonalised form is a multiple of its direction."""

    def gain(s):
        for _ in range(3):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        return s

    kernel = jnp.asarray([0.0, 2.0, 0.0, 0.0]).reshape(2, 2, 1, 1)
    gradient = jnp.asarray([3.0, 0.0, 0.0, 0.0]).reshape(2, 2, 1, 1)
    rule = optimizers.filter_muon(optax.linear_schedule(0.2, 0.0, 4), momentum=0.6)
    state = rule.init(kernel)
    update, state = rule.update(gradient, state, kernel)
    kernel = optax.apply_updates(kernel, update)
    # To norm 1, then a step of 0.2 against the gradient's direction.
    np.testing.assert_allclose(kernel.ravel(), [-0.2 * gain(1.0), 1.0, 0.0, 0.0], atol=1e-5)
    second = jnp.asarray([0.0, 0.0, 1.0, 0.0]).reshape(2, 2, 1, 1)
    update, state = rule.update(second, state, kernel)
    moved = optax.apply_updates(kernel, update)
    # m = 0.6 (3, 0, 0, 0) + (0, 0, 1, 0) and the direction of g + 0.6 m = (1.08, 0, 1.6, 0).
    direction = np.array([1.08, 0.0, 1.6, 0.0]) / np.hypot(1.08, 1.6)
    start = np.asarray(kernel.ravel()) / np.linalg.norm(kernel)
    np.testing.assert_allclose(moved.ravel(), start - 0.15 * gain(1.0) * direction, atol=1e-5)


def test_nesterov_steps_by_hand():
    sgd = optimizers.nesterov(optax.linear_schedule(0.5, 0.0, 2), momentum=0.8, weight_decay=0.1)
    weight = jnp.asarray([2.0])
    state = sgd.init(weight)
    update, state = sgd.update(jnp.asarray([1.0]), state, weight)
    # g = 1 + 0.2 · 2, m = g, and the step 0.5 (g + 0.8 m).
    weight = optax.apply_updates(weight, update)
    np.testing.assert_allclose(weight, 2.0 - 0.5 * 1.8 * 1.4, rtol=1e-6)
    update, state = sgd.update(jnp.asarray([1.0]), state, weight)
    g = 1.0 + 0.2 * float(weight[0])
    np.testing.assert_allclose(update, -0.25 * (g + 0.8 * (0.8 * 1.4 + g)), rtol=1e-5)


def test_muon_for_the_filters_of_any_network_by_hand():
    gain = lambda s, n: s if n == 0 else gain(3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5, n - 1)
    optimizer = training.Settings(
        4, learning_rate=0.1, schedule="constant", clip_norm=None, weight_decay=0.5, rule="muon"
    ).optimizer()
    params = {"kernel": jnp.full((2, 2, 1, 1), 2.0), "bias": jnp.ones(2)}
    state = optimizer.init(params)
    grads = {"kernel": jnp.full((2, 2, 1, 1), 3.0), "bias": jnp.array([1.0, -4.0])}
    update, _ = optimizer.update(grads, state, params)
    # A 4×1 matrix: the direction of the gradient, of norm gain(1), times 0.2 √4, and the decay of 0.5 · 2.
    entry = 0.2 * 2 * gain(1.0, 5) * 0.5
    np.testing.assert_allclose(update["kernel"].ravel(), 4 * [-0.1 * (entry + 1.0)], rtol=1e-4)
    # Adam's first step is the sign.
    np.testing.assert_allclose(update["bias"], [-0.1 * 1.5, -0.1 * (-1 + 0.5)], rtol=1e-4)


def test_muon_steps_are_as_large_as_adams():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 32, 48))
    rule = optimizers.scale_by_muon()
    update, _ = rule.update(kernel, rule.init(kernel))
    assert 0.12 < float(jnp.sqrt(jnp.mean(update**2))) < 0.28


def test_new_filters_hand_their_input_through_and_values_stay_sane():
    images = jax.random.uniform(jax.random.key(0), (8, 32, 32, 3))
    variables = jax.jit(SMALL.init)(jax.random.key(1), images[:1])
    kernel = variables["params"]["group1_conv0"]["kernel"]  # 8 → 12 channels
    passed = convolution.convolve(images[..., :1].repeat(8, -1), kernel)[..., :8]
    np.testing.assert_allclose(passed, images[..., :1].repeat(8, -1), atol=1e-6)
    apply = jax.jit(lambda v, i: SMALL.apply(v, i, train=True, mutable=["batch_stats"])[0])
    logits = apply(variables, images)
    assert logits.shape == (8, 10)
    assert 0.01 < float(logits.std()) < 3.0
    assert "whitening" in variables["batch_stats"]
    assert "whitening" not in variables["params"]


def test_a_description_builds_the_same_network():
    built = networks.build(networks.describe(SMALL))
    assert built == SMALL


def _data(count=60):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count).astype(np.int32)
    images = rng.integers(0, 100, (count, 32, 32, 3)) + 60 * labels[:, None, None, None]
    return data.Dataset("colours", "train", images.astype(np.uint8), labels, 3)


@pytest.fixture(scope="module")
def trained():
    dataset = _data()
    network = networks.WhitenedConvNet(num_outputs=3, features=(4, 6, 8))
    settings = AirbenchSettings(12, 20, steps_per_dispatch=6, whitening_steps=3, microbatches=2)
    optimizer, shape = settings.optimizer(), dataset.image_shape
    start = training.init_state(network, optimizer, jax.random.key(0), shape)
    start = airbench.with_whitening(start, network, data.to_float(dataset.images))
    run = settings.steps(network, jax.random.key(1), len(dataset), pj.Execution())
    filters = np.asarray(start.batch_stats["whitening"])
    end, _ = training.fit(run, start, dataset, settings)
    return network, dataset, filters, end


@pytest.mark.ci
def test_training_learns_and_leaves_the_whitening_alone(trained):
    network, dataset, filters, end = trained
    np.testing.assert_array_equal(end.batch_stats["whitening"], filters)
    variables = {"params": end.params, "batch_stats": end.batch_stats}
    logits = apply(network, variables, data.to_float(dataset.images))
    assert np.mean(np.argmax(logits, -1) == dataset.labels) > 0.8


def test_a_saved_model_gives_the_same_logits(trained, tmp_path):
    network, dataset, _, end = trained
    variables = {"params": end.params, "batch_stats": end.batch_stats}
    model = models.Model("classifier", network, variables, dataset.image_shape, {})
    models.save_model(tmp_path / "model.safetensors", model)
    loaded = models.load_model(tmp_path / "model.safetensors", ("classifier",))
    images = data.to_float(dataset.images[:4])
    expected = apply(network, variables, images)
    found = jax.jit(models.logits_fn(loaded))(images)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.ci
def test_parts_of_a_batch_add_up_to_the_gradient_of_their_sum():
    """With one image twice, halves have the statistics of the whole, and so its gradient."""
    dataset = _data(8)
    twice = np.concatenate([np.arange(4), np.arange(4)])[None]
    network = networks.WhitenedConvNet(num_outputs=3, features=(4, 6, 8))
    optimizer = optimizers.nesterov(optax.linear_schedule(1e-3, 0.0, 10), 0.0, 0.0)
    moved = []
    for microbatches in (1, 2):
        state = training.init_state(network, optimizer, jax.random.key(0), dataset.image_shape)
        start = jax.flatten_util.ravel_pytree(state.params)[0]
        run = training.scan_steps(
            training.ClassificationLoss(network=network), optimizer, jax.random.key(1),
            microbatches=microbatches,
        )  # fmt: skip
        end = run(state, jnp.asarray(dataset.images), jnp.asarray(dataset.labels), twice)[0]
        moved.append(np.asarray(jax.flatten_util.ravel_pytree(end.params)[0] - start))
    # Not to the digit: where a pool's values nearly tie, rounding decides which one is largest.
    assert np.linalg.norm(moved[0] - moved[1]) < 0.02 * np.linalg.norm(moved[0])
