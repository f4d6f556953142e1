"""A model file is a model or one clear line, whatever was done to it; the same model is the same bytes."""

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from purify_jax import models, networks
from purify_jax.checks import InputError
from purify_jax.models.headers import Header

NETWORK = networks.MLP(features=(8, 8))
VARIABLES = jax.tree.map(
    np.asarray, NETWORK.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1), jnp.float32))
)
METADATA = {
    "dataset": "digits",
    "num_classes": 10,
    "purification": {**models.PUBLISHED, "num_steps": 2, "num_restarts": 1},
    "training": {"scale": "per_variance", "sigma_min": 0.1, "sigma_max": 1.0},
}
MODEL = models.Model("score", NETWORK, VARIABLES, (4, 4, 1), METADATA)
#: What a field may hold instead of what belongs there.
JUNK = [
    None, True, False, 0, -3, 1, 2.5, 10**9, 10**30, -1e-9, 1e300, "", "abc", "4", [], [0], [-1], {},
    [1, "x"], {"name": "MLP"}, [4, 4, 1], [4096, 4096, 64], [10**9] * 3, [[8]], "../x", "nan", [8] * 2000,
    "annealed", "tweedie", "gradual", "mala",
]  # fmt: skip
RAW = ["", "[", "NaN", '{"a":', "[" * 20000, "1" * 5000, "null", "-Infinity", "\x00", '"x"']


def parts():
    header = Header(MODEL.role, NETWORK, (4, 4, 1), METADATA)
    tensors = {
        f"params/{layer}/{name}": array
        for layer, both in VARIABLES["params"].items()
        for name, array in both.items()
    }
    return header.texts(), tensors


def inside(name, *path):
    """Damage: a value inside the JSON text of a header's field is replaced, or left out."""

    def damage(texts, tensors, value):
        whole = json.loads(texts[name])
        place = whole
        for step in path[:-1]:
            place = place[step]
        if value == "..missing":
            del place[path[-1]]
        else:
            place[path[-1]] = value
        texts[name] = json.dumps(whole)

    return damage


def text(name):
    def damage(texts, tensors, value):
        if value == "..missing":
            del texts[name]
        else:
            texts[name] = value if isinstance(value, str) else json.dumps(value)

    return damage


def tensor(change):
    def damage(texts, tensors, value):
        name = sorted(tensors)[len(str(value)) % len(tensors)]
        changed = change(tensors.pop(name), value)
        if changed is not None:
            tensors[name] = changed

    return damage


def poisoned(bad):
    first = lambda array: np.arange(array.size).reshape(array.shape) == 0
    return tensor(lambda array, value: np.where(first(array), np.float32(bad), array))


def other_network(name, **fields):
    return lambda texts, tensors, value: texts.update(network=json.dumps({"name": name, **fields}))


DAMAGE = {
    **{f"text {n}": text(n) for n in ("format", "role", "network", "image_shape", "metadata")},
    **{f"network {n}": inside("network", n) for n in ("name", "features", "num_outputs", "dtype")},
    "network colour": inside("network", "colour"),
    **{f"shape {i}": inside("image_shape", i) for i in range(3)},
    **{f"metadata {n}": inside("metadata", n) for n in METADATA},
    **{f"purification {n}": inside("metadata", "purification", n) for n in models.PUBLISHED},
    "purification colour": inside("metadata", "purification", "colour"),
    **{f"training {n}": inside("metadata", "training", n) for n in METADATA["training"]},
    "a tensor is missing": tensor(lambda array, value: None),
    "transposed": tensor(lambda array, value: np.ascontiguousarray(array.T)),
    "flat": tensor(lambda array, value: array.reshape(-1)),
    "integers": tensor(lambda array, value: array.astype(np.int32)),
    "half precision": tensor(lambda array, value: array.astype(np.float16)),
    "bfloat16": tensor(lambda array, value: array.astype(ml_dtypes.bfloat16)),
    "double, too large for float32": tensor(lambda array, value: array.astype(np.float64) + 1e300),
    "NaN": poisoned(np.nan),
    "infinity": poisoned(-np.inf),
    "empty": tensor(lambda array, value: array[:0]),
    "one more tensor": lambda texts, tensors, value: tensors.update(x=np.zeros(3, np.float32)),
    "no tensor": lambda texts, tensors, value: tensors.clear(),
    "WideResNet": other_network("WideResNet", depth=1000, width=60000),
    "deep UNet": other_network("UNet", features=[8] * 1000, blocks=1000),
    "NCSNv2": other_network("NCSNv2", features=65536),
    "ConvNet": other_network("ConvNet"),
}  # fmt: skip


def write(path, kinds, values):
    texts, tensors = parts()
    for kind, value in zip(kinds, values, strict=True):
        try:
            DAMAGE[kind](texts, tensors, value)
        except (LookupError, TypeError, ValueError, RecursionError):
            continue  # an earlier damage took away what this one changes
    path.write_bytes(safetensors.numpy.save(tensors, texts))


def load_or_refuse(path):
    """Loads a file and makes its purifier; anything but a model or one line is a failure."""
    started, message = time.monotonic(), "refused"
    try:
        model = models.load_model(path)
        if model.role != "classifier":
            models.model_purifier(model)
    except InputError as error:
        message = str(error)
    else:
        for leaf in jax.tree.leaves(dict(model.variables)):
            assert leaf.dtype == jnp.float32
            assert bool(jnp.isfinite(leaf).all())
    assert len(message.splitlines()) == 1
    assert time.monotonic() - started < 20


@given(
    st.lists(st.sampled_from(sorted(DAMAGE)), min_size=1, max_size=2),
    st.lists(st.sampled_from([*JUNK, *RAW, "..missing"]), min_size=2, max_size=2),
)
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_file_is_a_model_or_one_line(tmp_path, kinds, values):
    assert len(DAMAGE) >= 40
    path = tmp_path / "m.safetensors"
    write(path, kinds, values[: len(kinds)])
    load_or_refuse(path)


@given(st.integers(0, 10**6), st.integers(0, 255), st.booleans())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_bytes_are_a_model_or_one_line(tmp_path, place, byte, cut):
    path = tmp_path / "m.safetensors"
    models.save_model(path, MODEL)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content[: place % len(content)] if cut else content)
    load_or_refuse(path)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("text role", "judge", "role: got 'judge', expected one of"),
        ("text metadata", "..missing", r"lacks \['metadata'\]"),
        ("text image_shape", "[4, 4", "image_shape: got .* expected JSON"),
        ("text image_shape", [4, 4], "expected height, width, channels"),
        ("shape 0", 0, "image_shape: got 0, expected a whole number >= 1"),
        ("shape 0", 10**9, "image_shape: got 1000000000, expected a whole number from 1 to 4096"),
        ("network name", "Nope", "network: got 'Nope', expected one of"),
        ("network features", [8, -3], "network MLP: features: got -3, expected a whole number"),
        ("network features", ["abc"], "network MLP: features: got 'abc'"),
        ("network features", 8, "network MLP: features: got 8, expected 1 to"),
        (
            "network features",
            [10**9],
            "network MLP: features: got 1000000000, expected .* to 65536",
        ),
        ("network features", [8] * 9, "describes at least 9 layers, but it holds 6 tensors"),
        ("network num_outputs", 5, "does not fit MLP .* misshapen"),
        ("network dtype", "float33", "network MLP: dtype: got 'float33'"),
        ("metadata dataset", 3, "metadata.dataset: got 3, expected a name"),
        ("purification method", "magic", "metadata.purification.method: got 'magic', expected one"),
        ("purification num_steps", 0, "metadata.purification.num_steps: got 0"),
        (
            "purification num_steps",
            10**9,
            "asks for 1000000000, expected at most 1000; give num_st",
        ),
        ("purification num_restarts", 2.5, "metadata.purification.num_restarts: got 2.5"),
        ("purification noise_scale", -3, "metadata.purification.noise_scale: got -3"),
        ("purification colour", 1, r"metadata.purification: got \['colour'\]"),
        (
            "training sigma_min",
            0,
            "metadata.training.sigma_min: got 0, expected a finite number > 0",
        ),
        ("training scale", "huge", "metadata.training.scale: got 'huge'"),
        ("NaN", 0, "NaN or infinity in params/.* expected finite weights"),
        ("double, too large for float32", 0, "NaN or infinity in params"),
        ("integers", 0, "no floating-point numbers in params"),
        ("ConvNet", 0, "does not fit ConvNet"),
    ],
)
def test_each_damage_is_named(tmp_path, kind, value, message):
    path = tmp_path / "m.safetensors"
    write(path, [kind], [value])
    with pytest.raises(InputError, match=message):
        models.model_purifier(models.load_model(path))


def test_more_steps_are_allowed_to_who_asks(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, ["purification num_steps"], [5000])
    model = models.load_model(path)
    assert models.model_purifier(model, num_steps=5000).num_steps == 5000
    with pytest.raises(InputError, match=r"--num_steps=N\) to allow more"):
        models.model_purifier(model)


def test_a_role_needs_a_network_that_fits(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, ["text role"], ["classifier"])
    with pytest.raises(InputError, match=r"answers shape \(1, 4, 4, 1\).* a classifier"):
        models.load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "judge"}, "role: got 'judge'"),
        ({"image_shape": (4, 0, 1)}, "image_shape: got 0"),
        ({"metadata": {"purification": {"num_steps": 0}}}, "purification.num_steps: got 0"),
        ({"metadata": {"loss": float("nan")}}, "metadata: cannot be written as JSON"),
        ({"metadata": {"x": np.float32(1)}}, "metadata: cannot be written as JSON"),
        ({"network": networks.MLP(features=(0,))}, "features: got 0"),
        ({"variables": jax.tree.map(lambda a: a * np.nan, VARIABLES)}, "NaN or infinity in params"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, change, message):
    path = tmp_path / "m.safetensors"
    fields = {"role": "score", "network": NETWORK, "variables": VARIABLES, "image_shape": (4, 4, 1)}
    with pytest.raises(InputError, match=message):
        models.save_model(path, models.Model(**{**fields, **change}))
    assert not path.exists()


def test_the_same_model_is_the_same_bytes_in_every_process(tmp_path):
    models.save_model(tmp_path / "0.safetensors", MODEL)
    again = models.load_model(tmp_path / "0.safetensors")
    reordered = dict(reversed(again.metadata.items()))
    models.save_model(
        tmp_path / "1.safetensors",
        models.Model(again.role, again.network, again.variables, again.image_shape, reordered),
    )
    code = (
        "import sys; from purify_jax import models; "
        "models.save_model(sys.argv[2], models.load_model(sys.argv[1]))"
    )
    files = [str(tmp_path / f"{i}.safetensors") for i in (0, 2)]
    subprocess.run([sys.executable, "-c", code, *files], env=environment(), check=True)
    first = (tmp_path / "0.safetensors").read_bytes()
    assert (tmp_path / "1.safetensors").read_bytes() == first
    assert (tmp_path / "2.safetensors").read_bytes() == first
