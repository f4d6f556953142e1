"""A defense as a torch.nn.Module: values, exact gradients, randomness, attacks from PyTorch."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, environment, keys_for

import purify_jax as pj
from purify_jax.bridges import as_torch_module
from purify_jax.bridges.torch_module import call_key
from purify_jax.checks import InputError

torch = pytest.importorskip("torch", reason="PyTorch is not installed (make torch)")


def nchw(images):
    return torch.from_numpy(np.array(images, np.float32).transpose(0, 3, 1, 2).copy())


@pytest.fixture(scope="module")
def shipped():
    """The digits defense that ships."""
    return pj.pretrained.load("digits").defense


@pytest.fixture(scope="module")
def batch(digits_test):
    return digits_test.images[:4], np.asarray(digits_test.labels[:4])


def _noisy(traces=None):
    """A small random defense whose parameters are leaves; ``traces`` counts compilations."""

    def logits(weights, images):
        if traces is not None:
            traces.append(images.shape)
        return jnp.tanh(images.reshape(len(images), -1)) @ weights

    def purify(keys, images):
        noisy = jnp.clip(images + 0.2 * pj.keys.normal_like(keys, images), 0, 1)
        return noisy[None], None

    def make(seed):
        weights = jax.random.normal(jax.random.key(seed), (64, 10))
        return pj.Defense(pj.Partial(purify), pj.Partial(logits, weights))

    return make


def test_forward_is_the_defense(shipped, batch):
    key = jax.random.key(3)
    fixed = as_torch_module(shipped, key, fresh=False)(nchw(batch[0]))
    expected = pj.jit(shipped)(pj.image_keys(key, np.arange(4)), batch[0])
    np.testing.assert_array_equal(fixed.numpy(), expected)
    fresh = as_torch_module(shipped, key)
    for call in range(2):
        expected = pj.jit(shipped)(pj.image_keys(call_key(key, call), np.arange(4)), batch[0])
        np.testing.assert_array_equal(fresh(nchw(batch[0])).numpy(), expected)


@pytest.mark.ci
def test_backward_is_the_gradient_in_jax(shipped, batch):
    """The cross-entropy's gradient through purifier and classifier, at the forward pass's keys."""
    images, labels = batch
    key = jax.random.key(5)
    module = as_torch_module(shipped, key)
    module(nchw(images))  # the second call's keys are what counts
    x = nchw(images).requires_grad_(True)
    torch.nn.functional.cross_entropy(module(x), torch.from_numpy(labels).long()).backward()
    keys = pj.image_keys(call_key(key, 1), np.arange(4))
    mean_loss = lambda images: -shipped(keys, images)[np.arange(4), labels].mean()
    expected = np.asarray(jax.jit(jax.grad(mean_loss))(images))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(x.grad.numpy().transpose(0, 2, 3, 1), expected, atol=1e-5, rtol=1e-5)


def test_backward_is_the_slope_of_the_forward_pass():
    module = as_torch_module(_noisy()(0), fresh=False)
    rng = np.random.default_rng(0)
    x = nchw(rng.uniform(0.35, 0.65, (3, 8, 8, 1))).requires_grad_(True)
    direction = nchw(rng.normal(size=(3, 8, 8, 1)))
    weights = torch.from_numpy(rng.normal(size=(3, 10)).astype(np.float32))
    (gradient,) = torch.autograd.grad((module(x) * weights).sum(), x)
    step = 2e-3
    with torch.no_grad():
        up, down = ((module(x + s * direction) * weights).sum(-1).double() for s in (step, -step))
    slope = (up - down) / (2 * step)
    np.testing.assert_allclose((gradient * direction).sum((1, 2, 3)), slope, rtol=2e-2, atol=2e-2)
    assert float(slope.abs().min()) > 0.2


def test_calls_are_fresh_or_fixed():
    x = torch.full((2, 1, 8, 8), 0.5)
    fresh, fixed = as_torch_module(_noisy()(0)), as_torch_module(_noisy()(0), fresh=False)
    assert float((fresh(x) - fresh(x)).abs().max()) > 1e-3
    assert torch.equal(fixed(x), fixed(x))
    again = as_torch_module(_noisy()(0))
    assert torch.equal(again(x), as_torch_module(_noisy()(0))(x))  # the same key, the same call
    assert not torch.equal(as_torch_module(_noisy()(0), jax.random.key(1))(x), fixed(x))
    assert (fresh.calls, again.calls) == (2, 1)


def test_equal_shapes_compile_once_for_all_parameters():
    traces = []
    make = _noisy(traces)

    def run(seed, count):
        x = torch.full((count, 1, 8, 8), 0.5, requires_grad=True)
        module = as_torch_module(make(seed))
        for _ in range(3):
            module(x)[:, 0].sum().backward()

    run(0, 2)
    once = len(traces)
    assert once > 0
    run(1, 2)  # other parameters, other keys
    assert len(traces) == once
    run(1, 3)  # another shape
    assert len(traces) == 2 * once


@pytest.mark.ci
def test_a_deterministic_defense_in_closed_form():
    weights = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    logits_fn = lambda images: images.reshape(len(images), -1) @ weights
    module = as_torch_module(pj.undefended(logits_fn))
    x = torch.rand((3, 3, 2, 2), generator=torch.manual_seed(0)).requires_grad_(True)
    found = module(x)
    expected = torch.log_softmax(
        x.permute(0, 2, 3, 1).reshape(3, -1) @ torch.from_numpy(weights), -1
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(module(x), found)  # fresh keys change nothing
    ours, theirs = (torch.autograd.grad(f[:, 1].sum(), x)[0] for f in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.ci
def test_pgd_in_pytorch_lowers_accuracy(shipped, digits_test):
    images, labels = nchw(digits_test.images[:48]), torch.from_numpy(digits_test.labels[:48]).long()
    module = as_torch_module(shipped)
    accuracy = lambda x: float((module(x).argmax(-1) == labels).float().mean())
    epsilon, x = 0.2, images.clone()
    for _ in range(6):
        x.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(module(x), labels)
        (gradient,) = torch.autograd.grad(loss, x)
        x = images + (x.detach() + 0.07 * gradient.sign() - images).clamp(-epsilon, epsilon)
        x = x.clamp(0, 1)
    noise = (images + epsilon * torch.randn_like(images).sign()).clamp(0, 1)
    assert accuracy(images) > 0.9
    assert accuracy(x) < accuracy(noise) - 0.2  # the same ball without a gradient


@pytest.mark.ci
def test_foolbox_attacks_it(shipped, digits_test):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed (the test extra)")
    images, labels = nchw(digits_test.images[:16]), torch.from_numpy(digits_test.labels[:16]).long()
    model = foolbox.PyTorchModel(as_torch_module(shipped, fresh=False).eval(), bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(steps=5, rel_stepsize=0.3)
    _, adversarial, fooled = attack(model, images, labels, epsilons=0.25)
    assert float((adversarial - images).abs().max()) <= 0.25 + 1e-6
    assert float(fooled.float().mean()) > 0.3


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(2, 8, 8, 1),
            "images: got shape (2, 8, 8, 1), channels last, expected [batch, c",
        ),
        (torch.zeros(8, 8), "images: got rank 2 (shape (8, 8)), expected [batch, channels, h"),
        (
            torch.full((1, 1, 8, 8), 255.0),
            "images: values lie in [255, 255], expected [0, 1] (0-255",
        ),
        (torch.full((1, 1, 8, 8), -0.1), "images: values lie in [-0.1, -0.1], expected [0, 1]"),
        (torch.full((1, 1, 8, 8), torch.nan), "64 pixels are NaN or infinite"),
        (np.zeros((1, 1, 8, 8), np.float32), "images: got ndarray, expected a torch.Tensor"),
        (
            torch.zeros((1, 1, 8, 8), dtype=torch.float64),
            "got dtype torch.float64, expected torch.fl",
        ),
        (
            torch.zeros((1, 1, 8, 8), dtype=torch.uint8),
            "got dtype torch.uint8, expected torch.float32",
        ),
    ],
)
def test_bad_input_is_one_line(images, message):
    module = as_torch_module(_noisy()(0))
    with pytest.raises(InputError) as error:
        module(images)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert module.calls == 0  # and no randomness was used up


def test_second_derivatives_are_refused():
    x = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    value = as_torch_module(_noisy()(0))(x)[0, 0]
    with pytest.raises(InputError, match="backward: got create_graph=True, expected first"):
        torch.autograd.grad(value, x, create_graph=True)
    (gradient,) = torch.autograd.grad(value, x)
    assert float(gradient.abs().max()) > 1e-3


def test_without_pytorch_it_is_one_line():
    """And the library itself is imported without PyTorch."""
    program = (
        "import builtins, purify_jax as pj\n"
        "real = builtins.__import__\n"
        "def without(name, *more, **named):\n"
        "    if name == 'torch': raise ImportError(name)\n"
        "    return real(name, *more, **named)\n"
        "builtins.__import__ = without\n"
        "try: pj.bridges.as_torch_module(lambda keys, images: images)\n"
        "except pj.InputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=environment()
    )
    assert done.stdout.strip() == (
        "as_torch_module: PyTorch is not installed, expected the torch extra"
    ), done.stderr[-2000:]


def test_importing_the_library_does_not_import_pytorch():
    program = "import sys, purify_jax.bridges; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=environment()
    )
    assert done.stdout.strip() == "False", done.stderr[-2000:]


def test_keys_of_calls_differ_from_the_runs_own():
    key = jax.random.key(0)
    drawn = [np.asarray(jax.random.key_data(call_key(key, c))).tolist() for c in range(3)]
    own = np.asarray(jax.random.key_data(keys_for(3))).tolist()
    assert len({tuple(k) for k in [*drawn, *own]}) == 6
