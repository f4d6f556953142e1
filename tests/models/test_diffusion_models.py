"""Diffusion models as files: what they denoise, purify and cost; names of methods; one line for damage."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

import purify_jax as pj
from purify_jax import diffusions
from purify_jax.checks import InputError
from purify_jax.costs import network_passes
from purify_jax.models import torch_weights
from purify_jax.networks.diffusion import SongUNet
from purify_jax.purifiers import guidance

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="module")
def edm():
    state = torch_weights.read(GOLDEN / "edm_ddpmpp.npz")
    return torch_weights.import_model("edm", state)[0]


@pytest.fixture(scope="module")
def shipped():
    return pj.pretrained.load("digits")


@pytest.mark.ci
def test_a_published_network_comes_back_from_its_file(edm, tmp_path):
    pj.models.save_model(tmp_path / "model.safetensors", edm)
    model = pj.load_model(tmp_path / "model.safetensors", ("diffusion",))
    assert isinstance(model.network, SongUNet)
    assert model.network == edm.network
    data = np.load(GOLDEN / "edm_ddpmpp.npz")
    signed = np.moveaxis(data["input"], 1, -1)
    found = pj.jit(pj.models.diffusion(model))(diffusions.pixels(signed), 0.5 * data["condition"])
    expected = diffusions.pixels(np.moveaxis(data["denoised"], 1, -1))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(data["denoised"]).max()
    with pytest.raises(InputError, match="is a diffusion, expected classifier"):
        pj.load_model(tmp_path / "model.safetensors", ("classifier",))


@pytest.mark.parametrize("form", ["edm", "vp", "ve"])
def test_a_diffusion_and_its_score_say_the_same(form):
    network = lambda x, condition: jnp.tanh(x) * jnp.cos(condition)[:, None, None, None]
    diffusion = pj.models.DIFFUSIONS[form](network=network)
    again = diffusions.FromScore(noise_score=diffusions.noise_score(diffusion))
    images = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
    sigmas = jnp.array([0.05, 0.6])
    np.testing.assert_allclose(diffusion(images, sigmas), again(images, sigmas), atol=1e-5)
    state, t = images - 0.5, jnp.array([0.1, 0.7])
    np.testing.assert_allclose(diffusion.noise_at(state, t), again.noise_at(state, t), atol=1e-4)


def _gaussian_score(images, sigma):
    """∇ log p_σ of N(0.4, 0.2²) pixels."""
    variance = 0.04 + jnp.broadcast_to(jnp.asarray(sigma), images.shape[:1]) ** 2
    return (0.4 - images) / variance[:, None, None, None]


def test_from_score_is_the_posterior_mean_of_a_gaussian():
    images = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    sigmas = jnp.array([0.1, 0.5])
    found = diffusions.FromScore(noise_score=_gaussian_score)(images, sigmas)
    share = (0.04 / (0.04 + sigmas**2))[:, None, None, None]
    np.testing.assert_allclose(found, 0.4 + share * (images - 0.4), atol=1e-6)


@pytest.mark.parametrize("conditional", [False, True])
def test_one_noise_level_per_image(conditional):
    images = jax.random.uniform(jax.random.key(2), (3, 8, 8, 1))
    network = (
        pj.networks.NoiseConditionalUNet(features=(4,), blocks=1)
        if conditional
        else pj.networks.MLP(features=(8,))
    )
    params = jax.jit(network.init)(jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda p: p + 0.05, params)  # the last layer starts as zero
    role = "score" if conditional else "energy"
    metadata = {"training": {"scale": "per_variance", "sigma_min": 0.05}}
    model = pj.models.Model(role, network, {"params": params}, (8, 8, 1), metadata)
    score = pj.jit(pj.models.noise_score(model))
    sigmas = jnp.array([0.1, 0.3, 0.9])
    together = score(images, sigmas)
    alone = [score(images[i : i + 1], sigmas[i])[0] for i in range(3)]
    assert float(jnp.abs(together).max()) > 1e-3
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=2e-4, atol=1e-5)


DIFFUSED = {
    # method → (settings, passes of one image)
    "diffpure_sde": ({"num_steps": 6}, 6),
    "diffpure_ode": ({"num_steps": 6}, 6),
    "ddim": ({"num_steps": 5}, 5),
    "likelihood_maximisation": ({"num_steps": 4}, 4),
}


@pytest.mark.parametrize("method", DIFFUSED)
def test_methods_by_name_run_on_a_score_model_and_are_counted(method, shipped):
    settings, passes = DIFFUSED[method]
    purifier = pj.models.model_purifier(
        shipped.score_model, method=method, noise_scale=0.2, num_restarts=3, **settings
    )
    dataset = pj.data.load_split("digits", "test")
    images = dataset.batch(np.arange(16))[0]
    keys = pj.image_keys(jax.random.key(0), np.arange(16))
    purified, info = pj.jit(purifier)(keys, images)
    assert purified.shape == (3, 16, 8, 8, 1)
    assert info.step_sizes.shape[0] == passes
    # It denoises: the result is nearer to the data than the noise that it started from.
    distance = float(jnp.sqrt(jnp.mean((purified - images) ** 2)))
    assert distance < 0.2, distance
    assert network_passes(type(shipped.score_model.network), purifier, keys, images) == 3 * passes


def test_the_noise_scale_is_the_noise_that_diffpure_starts_from(shipped):
    made = pj.models.model_purifier(shipped.score_model, method="diffpure_sde", noise_scale=0.17)
    schedule = made.diffusion.schedule
    assert float(schedule.sigma(made.t_star)) == pytest.approx(2 * 0.17, rel=1e-4)
    assert made.t_star == pytest.approx(0.1, abs=1e-3)  # DiffPure's on CIFAR-10


def test_guidance_is_published_where_stable_and_never_overshoots():
    schedule = diffusions.LinearSchedule()
    assert guidance.stable(0.036, schedule) == guidance.PUBLISHED_GUIDANCE
    for t_star in (0.1, 0.3, 1.0):
        count = round(1000 * t_star)
        bars, betas = schedule.alphas_bar()[:count], schedule.betas()[:count]
        scale = 3 * np.sqrt((1 - bars) / bars) / (2 * 8 / 255)
        pulls = guidance.stable(t_star, schedule) * betas * scale
        assert pulls.max() <= 1 + 1e-9
    assert guidance.stable(0.3, schedule) < guidance.PUBLISHED_GUIDANCE


def test_an_unknown_form_is_named(edm, shipped):
    model = pj.models.Model("diffusion", edm.network, edm.variables, edm.image_shape, {})
    with pytest.raises(InputError, match=r"metadata\.diffusion\.form"):
        pj.models.diffusion(model)
    with pytest.raises(InputError, match="expected an energy, score or diffusion model"):
        pj.models.score_fn(shipped.classifier)


@pytest.mark.ci
def test_a_network_that_needs_classes_says_so():
    network = pj.networks.ADM(
        features=8,
        multipliers=(1,),
        num_blocks=1,
        attention_rates=(),
        head_channels=8,
        num_classes=3,
    )
    inputs = [jnp.zeros(i.shape) for i in pj.networks.example_inputs(network, (8, 8, 3))]
    variables = jax.jit(network.init)(jax.random.key(0), *inputs)
    about = {"diffusion": {"form": "discrete_vp"}}
    model = pj.models.Model("diffusion", network, variables, (8, 8, 3), about)
    with pytest.raises(InputError, match="expected a class of the ADM's 3"):
        pj.models.diffusion(model)
    denoised = pj.jit(pj.models.diffusion(model, labels=2))(inputs[0] + 0.5, jnp.full(1, 0.1))
    assert np.isfinite(denoised).all()


def _write_edm(path, change):
    state = dict(torch_weights.read(GOLDEN / "edm_ddpmpp.npz"))
    change(state)
    np.savez(path, **state)


def _drop(state):
    del state["model.map_layer0.weight"]


def _rename(state):
    state["model.map_layerX.weight"] = state.pop("model.map_layer0.weight")


def _transpose(state):
    name = "model.enc.32x32_conv.weight"
    state[name] = np.swapaxes(state[name], 0, 1)


FAULTS = {
    "missing": (_drop, "missing model.map_layer0.weight"),
    "renamed": (_rename, "unexpected model.map_layerX.weight"),
    "transposed": (_transpose, "misshapen model.enc.32x32_conv.weight"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_published_file_are_one_line(fault, tmp_path):
    change, message = FAULTS[fault]
    _write_edm(tmp_path / "edm.npz", change)
    state = torch_weights.read(tmp_path / "edm.npz")
    with pytest.raises(InputError) as caught:
        torch_weights.import_model("edm", state)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.ci
def test_the_binary_imports_and_refuses(run_binary, tmp_path):
    out = tmp_path / "edm.safetensors"
    source = GOLDEN / "edm_ddpmpp.npz"
    done = run_binary(
        "import_weights", "--kind=edm", f"--source={source}", f"--out={out}", "--quiet"
    )
    assert "D(x; 0.1) of one random image: (1, 32, 32, 3)" in done.stdout
    assert pj.load_model(out).metadata["diffusion"] == {"form": "edm"}
    (tmp_path / "edm.pkl").write_bytes(b"\x80\x04.")
    other = tmp_path / "other.safetensors"
    done = run_binary(
        "import_weights", "--kind=edm", f"--source={tmp_path / 'edm.pkl'}", f"--out={other}",
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "which runs code when opened" in done.stderr
    assert "Traceback" not in done.stderr
    assert not other.exists()


@pytest.mark.ci
def test_the_document_runs_and_its_units_are_right(model_files, digits_test, monkeypatch):
    text = (ROOT / "docs" / "diffusion.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    score_model, classifier = model_files
    for old, new in {
        "score_sde.safetensors": str(score_model), '"classifier.safetensors': f'"{classifier}',
        "num_steps=100": "num_steps=2", "num_steps=20": "num_steps=2",
    }.items():  # fmt: skip
        assert old in block
        block = block.replace(old, new)
    monkeypatch.setattr(pj, "load_split", lambda *_: digits_test)
    names: dict = {}
    exec(compile(block, "diffusion.md", "exec"), names)
    moved = np.abs(names["adversarial"] - names["images"])
    assert 0 < moved.max() <= 8 / 255 + 1e-6
    times, sigmas = (
        [float(cell) for cell in re.findall(r"0\.\d+", line)]
        for line in text.splitlines()
        if line.startswith(("| DiffPure's t", "| σ in pixel units"))
    )
    schedule = diffusions.LinearSchedule()
    np.testing.assert_allclose(0.5 * schedule.sigma(jnp.array(times)), sigmas, atol=6e-4)
