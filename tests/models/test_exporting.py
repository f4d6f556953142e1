"""An exported defense: the same numbers at any batch size, and the same gradient, without the code."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import environment, keys_for

import purify_jax as pj
from purify_jax.checks import InputError
from purify_jax.models import exporting


@pytest.fixture(scope="module")
def exported(defense, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "defense.npz"
    assert exporting.export_defense(path, defense, (8, 8, 1)) == path.stat().st_size
    return path


@pytest.mark.ci
@pytest.mark.parametrize("batch", [1, 5])
def test_same_numbers_at_any_batch_size(exported, defense, digits_test, batch):
    images = jnp.asarray(digits_test.batch(np.arange(batch))[0])
    reloaded = exporting.load_exported(exported)
    found, expected = (jax.jit(f)(keys_for(batch), images) for f in (reloaded, defense))
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("implementation", exporting.IMPLEMENTATIONS)
def test_keys_of_every_implementation(implementation, tmp_path):
    """Noise alone, so that another stream of random numbers is another result."""
    noisy = lambda keys, images: (
        images.mean((1, 2))
        + jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 3), (1,)))(keys)
    )
    path, images = tmp_path / "noisy.npz", jnp.full((3, 8, 8, 1), 0.5)
    with jax.default_prng_impl(implementation):
        exporting.export_defense(path, noisy, (8, 8, 1))
    reloaded = exporting.load_exported(path)
    keys = jax.random.split(jax.random.key(7, impl=implementation), 3)
    np.testing.assert_allclose(jax.jit(reloaded)(keys, images), noisy(keys, images), atol=1e-6)
    other = "rbg" if implementation != "rbg" else "unsafe_rbg"
    with pytest.raises(InputError, match=f"keys: got {other} keys, expected {implementation}"):
        reloaded(jax.random.split(jax.random.key(7, impl=other), 3), images)
    exporting.export_defense(path, noisy, (8, 8, 1), implementation=other)
    assert exporting.load_exported(path).implementation == other


@pytest.mark.ci
def test_same_gradient(exported, defense, digits_test):
    images, labels = digits_test.batch(np.arange(3))
    images = jnp.asarray(images)
    slope = lambda f: jax.jit(pj.attacks.ExactGradient(f))(keys_for(3), images, labels)[0]
    expected = np.asarray(slope(defense))
    found = np.asarray(slope(exporting.load_exported(exported)))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.ci
def test_runs_without_the_model_code(exported, defense, digits_test, tmp_path):
    images = digits_test.batch(np.arange(2))[0]
    np.savez(tmp_path / "in.npz", images=images, keys=jax.random.key_data(keys_for(2)))
    code = (
        "import sys, numpy as np\n"
        "from jax import export\n"
        f"data = np.load({str(tmp_path / 'in.npz')!r})\n"
        f"archive = np.load({str(exported)!r})\n"
        "leaves = [archive[f'leaf_{i}'] for i in range(len(archive.files) - 2)]\n"
        "run = export.deserialize(bytearray(archive['program'])).call\n"
        f"np.save({str(tmp_path / 'out.npy')!r}, run(leaves, data['keys'], data['images']))\n"
        "assert not any(m.startswith(('purify_jax', 'flax')) for m in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = jax.jit(defense)(keys_for(2), jnp.asarray(images))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=2e-5)


@pytest.mark.ci
def test_a_convolutional_score_network_exports(models, tmp_path):
    network = pj.networks.UNet(features=(4, 8))
    params = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    purifier = pj.ADP(pj.energy.NetworkScore(network, params), num_steps=2, num_restarts=2)
    defense = pj.Defense(purifier, pj.models.logits_fn(models[1]))
    exporting.export_defense(tmp_path / "d.npz", defense, (8, 8, 1), ("cpu", "tpu"))
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    found = exporting.load_exported(tmp_path / "d.npz")(keys_for(3), images)
    np.testing.assert_allclose(found, jax.jit(defense)(keys_for(3), images), atol=2e-5)


def test_bad_input_gets_one_line(defense, exported, tmp_path):
    with pytest.raises(InputError, match="platforms: got"):
        exporting.export_defense(tmp_path / "x", defense, (8, 8, 1), ("abacus",))
    with pytest.raises(InputError, match="implementation: got"):
        exporting.export_defense(tmp_path / "x", defense, (8, 8, 1), implementation="dice")
    with pytest.raises(InputError, match="is not a file"):
        exporting.load_exported(tmp_path / "nothing")
    (tmp_path / "torn").write_bytes(exported.read_bytes()[:1000])
    with pytest.raises(InputError, match="is damaged"):
        exporting.load_exported(tmp_path / "torn")
    with pytest.raises(InputError, match=r"expected \(8, 8, 1\)"):
        exporting.load_exported(exported)(keys_for(1), jnp.zeros((1, 9, 8, 1)))


def test_binary(run_binary, model_files, tmp_path):
    path = tmp_path / "defense.npz"
    score_model, classifier = model_files
    done = run_binary(
        "export", f"--score_model={score_model}", f"--classifier={classifier}", f"--output={path}"
    )
    assert "the exported defense" in done.stdout
    images = jnp.full((2, 8, 8, 1), 0.5)
    found = exporting.load_exported(path)(keys_for(2), images)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-4)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"flatbuffers \(pip install 'purify_jax\[export\]'\)"):
        exporting.load_exported(tmp_path / "defense.npz")
