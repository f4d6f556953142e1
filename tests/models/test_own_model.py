"""docs/own_model.md and attack_from_pytorch.md: classifiers of other libraries, and their attacks on a defense."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, keys_for

import purify_jax as pj

#: A text of every block of the pages, each in one block alone.
BLOCKS = (
    'purifier = pj.pretrained.load("digits")', "logits_fn = lambda images", "def logits_of(weights", "NetworkLogits(module",
    "from flax import nnx", "import equinox", "logits_from_torch(module, num_classes=10)  # module takes",
    'torch.load("classifier.pt"', "# NCHW, float32",
    "from autoattack", "import torchattacks", "import foolbox", "saved.save",
)  # fmt: skip


def blocks():
    pages = [(ROOT / "docs" / n).read_text() for n in ("own_model.md", "attack_from_pytorch.md")]
    return re.findall(r"```python\n(.*?)```", "".join(pages), re.DOTALL)


def run_block(containing, **names):
    """The names after the pages' one block with this text is run with these names."""
    assert containing in BLOCKS
    (source,) = [block for block in blocks() if containing in block]
    scope = {"pj": pj, "jax": jax, "np": np, **names}
    exec(compile(source, "own_model.md", "exec"), scope)
    return scope


@pytest.fixture(scope="module")
def both(golden, golden_classifier):
    """(logits_fn that calls PyTorch, logits_fn in JAX) of the digits convnet with the same weights."""
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )
    data = golden("autoattack_digits")
    state = {
        k.removeprefix("state_dict/"): torch.from_numpy(data[k])
        for k in data.files
        if "state_dict" in k
    }
    module.load_state_dict(state)
    block = run_block("logits_from_torch(module, num_classes=10)  # module takes", module=module)
    return block["logits_fn"], golden_classifier[0]


@pytest.mark.ci
def test_values_and_gradients_agree(both, defense, golden_classifier):
    called, converted = both
    _, images, labels = golden_classifier
    images, labels, keys = images[:8], labels[:8], keys_for(8)
    np.testing.assert_allclose(jax.jit(called)(images), converted(images), atol=1e-4)
    for gradient in (pj.attacks.bpda, pj.attacks.ExactGradient):
        found, expected = (
            jax.jit(gradient(pj.Defense(defense.purifier, f)))(keys, images, labels)
            for f in (called, converted)
        )
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found[0], expected[0], rtol=2e-2, atol=1e-3)
    blind = [jax.jit(pj.attacks.blind(f))(keys, images, labels)[0] for f in (called, converted)]
    np.testing.assert_allclose(*blind, atol=1e-4)


def test_from_a_pytorch_file_to_a_figure(tmp_path, monkeypatch, capsys):
    """The page's ten lines, with a small purifier in place of the one that ships and a shorter attack."""
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    # Red, green and blue of the whole image: it answers the first three classes.
    module = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 10)
    )
    torch.save(module, "classifier.pt")
    blur = pj.purifiers.gaussian_blur(0.5)
    monkeypatch.setattr(pj.pretrained, "load", lambda name: SimpleNamespace(purifier=blur))
    short = functools.partial(pj.attacks.PGD, num_steps=2)
    monkeypatch.setattr(
        pj.attacks, "PGD", lambda gradient, epsilon, num_steps: short(gradient, epsilon=epsilon)
    )
    found = run_block('torch.load("classifier.pt"')
    block = (ROOT / "docs" / "own_model.md").read_text().split("import jax, torch")[1]
    assert len(block.split("```")[0].strip().splitlines()) <= 10
    assert len(found["records"]) == 32
    weights, bias = (p.detach().numpy() for p in module.parameters())
    images, labels = found["photographs"].batch(np.arange(16))
    expected = images.mean((1, 2)) @ weights.T + bias
    np.testing.assert_allclose(found["logits_fn"](images), expected, atol=1e-5)
    clean = (expected.argmax(-1) == labels).mean()
    assert pj.accuracy(found["records"], "clean").value == pytest.approx(clean)
    assert float(capsys.readouterr().out.split()[0]) <= clean


def test_what_is_no_classifier_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(pj.InputError, match="module: got str, expected a torch.nn.Module"):
        pj.bridges.logits_from_torch("classifier.pt", 10)
    flat = torch.nn.Flatten()
    with pytest.raises(
        pj.InputError, match="returned 12 numbers per image, expected num_classes = 10"
    ):
        jax.block_until_ready(pj.bridges.logits_from_torch(flat, 10)(jnp.zeros((1, 2, 2, 3))))


@pytest.mark.ci
def test_a_called_back_classifier_is_evaluated(both, defense, golden_classifier):
    called, converted = both
    _, images, labels = golden_classifier
    data = pj.data.Dataset("golden", "test", np.asarray(images[:16]), np.asarray(labels[:16]), 10)
    tables = []
    for f in (called, converted):
        attack = pj.attacks.PGD(pj.attacks.blind(f), epsilon=0.1, step_size=0.03, num_steps=5)
        model = pj.Defense(defense.purifier, f)
        tables.append(
            pj.evaluation.evaluate(jax.random.key(0), model, {"blind": attack}, data, draws=2)
        )
    same = [a["one_draw"] == b["one_draw"] for a, b in zip(*tables, strict=True)]
    assert np.mean(same) > 0.95


def test_a_test_runs_every_block():
    assert [[text for text in BLOCKS if text in block] for block in blocks()] == [
        [t] for t in BLOCKS
    ]


def test_a_plain_function_defends():
    weights = jax.random.normal(jax.random.key(0), (64, 10))
    logits_fn = run_block("logits_fn = lambda images", weights=weights, bias=1.0)["logits_fn"]
    images = jnp.full((3, 8, 8, 1), 0.25)
    np.testing.assert_allclose(logits_fn(images), jnp.full((3, 64), -0.25) @ weights + 1, rtol=1e-5)
    made = run_block(BLOCKS[0], logits_fn=logits_fn, keys=keys_for(3), images=images)
    np.testing.assert_allclose(jnp.exp(made["log_probs"]).sum(-1), 1, rtol=1e-5)
    assert made["defense"].logits_fn(images).shape == (3, 10)


def test_a_linen_classifier():
    from flax import linen

    norm = linen.BatchNorm(use_running_average=True)
    module = linen.Sequential([lambda x: x.reshape(len(x), -1), norm, linen.Dense(10)])
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    variables = module.init(jax.random.key(1), images)
    assert variables.keys() == {"params", "batch_stats"}
    made = run_block("NetworkLogits(module", module=module, **variables)
    np.testing.assert_allclose(
        made["logits_fn"](images), module.apply(variables, images), rtol=1e-5
    )
    assert len(jax.tree.leaves(made["logits_fn"])) == len(jax.tree.leaves(variables))


def test_a_function_of_arrays_compiles_once_for_all_checkpoints(defense):
    draw = lambda seed: jax.random.normal(jax.random.key(seed), (64, 10))
    scope = run_block("def logits_of(weights", weights=draw(0), bias=jnp.zeros(10))
    first, logits_of = scope["logits_fn"], scope["logits_of"]
    images = jnp.full((3, 8, 8, 1), 0.25)
    np.testing.assert_allclose(first(images), jnp.full((3, 64), -0.25) @ draw(0), rtol=1e-5)
    second = pj.Partial(logits_of, draw(1), jnp.ones(10))
    programs = [jax.tree.structure(pj.Defense(defense.purifier, f)) for f in (first, second)]
    assert programs[0] == programs[1]


def test_an_nnx_classifier(defense):
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(64, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.linear = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, images):
            return self.linear(self.dropout(self.norm(images.reshape(len(images), -1))))

    network = Network(nnx.Rngs(0))
    network.norm.mean[...] = jnp.full(64, 0.3)
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    made = run_block("from flax import nnx", network=network)
    scale = 1 / jnp.sqrt(1 + network.norm.epsilon)
    expected = (images.reshape(3, -1) - 0.3) * scale @ network.linear.kernel[...]
    np.testing.assert_allclose(made["logits_fn"](images), expected, rtol=1e-4, atol=1e-5)
    # Defended, differentiated, and another checkpoint is the same program.
    whole = pj.Defense(defense.purifier, made["logits_fn"])
    gradient, _ = pj.jit(pj.attacks.ExactGradient(whole))(keys_for(3), images, jnp.arange(3))
    assert np.isfinite(gradient).all()
    assert float(jnp.abs(gradient).max()) > 0
    other = Network(nnx.Rngs(1))
    other.eval()
    second = pj.Partial(made["logits_of_nnx"], *nnx.split(other))
    assert jax.tree.structure(second) == jax.tree.structure(made["logits_fn"])


def test_an_equinox_classifier(defense):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed (pip install equinox)")
    layers = [eqx.nn.Conv2d(1, 4, 3, key=jax.random.key(0)), eqx.nn.Lambda(jax.nn.relu)]
    layers += [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(144, 10, key=jax.random.key(1))]
    network = eqx.nn.Sequential([*layers, eqx.nn.Dropout(0.5)])
    logits_fn = run_block("import equinox")["logits_from_equinox"](network)
    images = jax.random.uniform(jax.random.key(2), (3, 8, 8, 1))
    hidden = jax.lax.conv(images.transpose(0, 3, 1, 2), layers[0].weight, (1, 1), "VALID")
    hidden = jax.nn.relu(hidden + layers[0].bias).reshape(3, -1)
    expected = hidden @ layers[3].weight.T + layers[3].bias
    np.testing.assert_allclose(logits_fn(images), expected, rtol=1e-4, atol=1e-5)
    assert len(jax.tree.leaves(logits_fn)) == 4
    whole = pj.Defense(defense.purifier, logits_fn)
    gradient, _ = pj.jit(pj.attacks.ExactGradient(whole))(keys_for(3), images, jnp.arange(3))
    assert float(jnp.abs(gradient).max()) > 0


@pytest.mark.parametrize(
    ("block", "library"),
    [
        ("import foolbox", "foolbox"),
        ("import torchattacks", "torchattacks"),
        ("from autoattack", "autoattack"),
    ],
)
def test_attacks_of_pytorch_libraries(golden_classifier, block, library, tmp_path, monkeypatch):
    """Each lowers the accuracy of a random defense, and its images are saved inside the ball."""
    pytest.importorskip("torch", reason="PyTorch is not installed (make torch)")
    pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    logits_fn, images, labels = golden_classifier
    noise = lambda keys, x: (jnp.clip(x + 0.05 * pj.keys.normal_like(keys, x), 0, 1)[None], None)
    noisy = pj.Defense(noise, logits_fn)
    names = {"images": np.array(images[:32]), "labels": np.array(labels[:32]), "epsilon": 0.2}
    names |= run_block("# NCHW, float32", defense=noisy, **names)
    names |= run_block(block, **names)
    run_block("saved.save", **names)
    found = pj.attacks.saved.load("adversarial.npz", images.shape[1:])
    assert 0.15 < pj.attacks.saved.distances(found, "linf").max() <= 0.2 + 1e-6
    judge = lambda x: pj.evaluation.worst_of.average(
        pj.evaluation.worst_of.correct_draws(jax.random.key(9), noisy, x, found.labels, 4)
    )
    assert judge(found.clean).value > 0.9
    assert judge(found.adversarial).value < 0.6
