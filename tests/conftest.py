"""Shared fixtures: small trained models, golden files, binaries as subprocesses."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax import xla
from purify_jax.networks.convolution import convolve

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
#: The rules of accessible pages (``npm install --no-save axe-core@4.14.1``).
AXE = Path(os.environ.get("PURIFY_AXE") or ROOT / "node_modules" / "axe-core" / "axe.min.js")

# With less of LLVM's optimisation, and with the older code generator for fusions (where jaxlib still has it), a
# program of a test's size compiles in 40% of the time, and in the tests' own process in half of that without most of
# XLA's passes. The arithmetic is the same up to rounding; PURIFY_TEST_QUICK=off in the environment tests what users run.
QUICK = os.environ.get("PURIFY_TEST_QUICK") != "off"
if QUICK:
    xla.add([xla.LEVEL, "--xla_cpu_use_fusion_emitters=false"])
    jax.config.update("jax_disable_most_optimizations", True)
#: For processes that need other flags besides.
XLA_FLAGS = os.environ.get("XLA_FLAGS", "")

# Most of these tests' time is XLA's; what one test compiled, the next one (and every subprocess)
# finds here. A new folder for every run, so that a run depends on nothing outside.
CACHE = Path(os.environ.setdefault("PURIFY_TEST_CACHE", tempfile.mkdtemp(prefix="purify_jax_xla_")))
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


# The same examples in every run: a failure belongs to a change, not to chance.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")


#: A network's parameters, and its output, each as one program. Operation by operation they are a hundred programs.
init = jax.jit(lambda network, key, *inputs: network.init(key, *inputs), static_argnums=0)
apply = jax.jit(
    lambda network, variables, *inputs: network.apply(variables, *inputs), static_argnums=0
)


@pytest.fixture
def compiled_with_optimisations():
    """For modules whose programs run for longer than they compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def digits_test():
    return pj.data.load_split("digits", "test")


@pytest.fixture(scope="session")
def models():
    """(energy model, classifier) on digits: those that ship, the quickstart's networks."""
    ready = pj.pretrained.load("digits")
    return ready.score_model, ready.classifier


@pytest.fixture(scope="session")
def model_files(models, tmp_path_factory):
    """Paths of the two models as files."""
    folder = tmp_path_factory.mktemp("models")
    paths = folder / "score_model.safetensors", folder / "classifier.safetensors"
    for path, model in zip(paths, models, strict=True):
        pj.models.save_model(path, model)
    return paths


@pytest.fixture(scope="session")
def defense(models):
    """A small purified defense on digits."""
    score_model, classifier = models
    purifier = pj.models.adp_purifier(score_model, num_steps=3, num_restarts=2)
    return pj.Defense(purifier, pj.models.logits_fn(classifier))


@pytest.fixture(scope="session")
def golden():
    """Loads a file of tests/golden by name."""
    return lambda name: np.load(ROOT / "tests" / "golden" / f"{name}.npz")


@pytest.fixture(scope="session")
def golden_classifier(golden):
    """The convnet of the AutoAttack reference, as (logits_fn, images NHWC, labels)."""
    data = golden("autoattack_digits")
    weights = {k.removeprefix("state_dict/"): data[k] for k in data.files if "state_dict" in k}
    kernels = {name: weights[f"{name}.weight"].transpose(2, 3, 1, 0) for name in ("0", "2")}

    def logits_fn(x):
        # The package's convolution: XLA's own takes minutes for its gradients inside an attack's loop.
        for name, stride in (("0", 1), ("2", 2)):
            x = convolve(x, kernels[name], (stride, stride), ((1, 1), (1, 1)))
            x = jax.nn.relu(x + weights[f"{name}.bias"])
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        x = jax.nn.relu(x @ weights["5.weight"].T + weights["5.bias"])
        return x @ weights["7.weight"].T + weights["7.bias"]

    images = jnp.asarray(data["x"].transpose(0, 2, 3, 1))
    return logits_fn, images, jnp.asarray(data["labels"], jnp.int32)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """The smallest models and data that every binary can work with (tests/faults/workplace.py)."""
    from tests.faults import workplace

    return workplace.make(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def run_binary():
    """Runs ``python -m experiments.NAME`` (or a module by its full name); the completed process.

    A process of its own that is forked from a server with the libraries loaded (tests/faults/harness.py):
    it starts in milliseconds. ``fresh``: a new interpreter, which has imported nothing.
    """
    from tests.faults import harness

    def run(name, *args, check=True, fresh=False):
        if fresh:
            module = name if "." in name else f"experiments.{name}"
            command = [sys.executable, "-m", module, *map(str, args)]
            texts = {"capture_output": True, "text": True}
            done = subprocess.run(command, cwd=ROOT, env=environment(), timeout=400, **texts)
            assert not check or done.returncode == 0, done.stderr[-3000:]
            return done
        done = harness.run(name, *args, timeout=400)
        if done.hung or (check and done.code):
            raise AssertionError(f"{name} {args} exited {done.code}:\n{done.err[-3000:]}")
        return subprocess.CompletedProcess([name, *args], done.code, done.out, done.err)

    return run


@pytest.fixture(scope="session")
def refusal(run_binary):
    """Runs a binary that ends with one error line, and status 2 if that says how it is used, else 1; the line."""

    def refuse(name, *args):
        done = run_binary(name, *args, check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, done.stderr[-3000:]
        assert done.returncode == (2 if "(usage: " in lines[0] else 1)
        assert "Traceback" not in done.stderr
        return lines[0]

    return refuse


def environment():
    """The environment of a binary: CPU only, compiled as the tests are, programs shared with the other tests."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(QUICK)),
    }


def keys_for(count, seed=0):
    """One key per image."""
    return pj.image_keys(jax.random.key(seed), np.arange(count))
