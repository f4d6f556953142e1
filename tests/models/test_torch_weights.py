"""Published weights: golden outputs, strictness, file formats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT, apply, init

from purify_jax import models, networks
from purify_jax.checks import InputError
from purify_jax.models import torch_weights

GOLDEN = [
    ("ncsnv2_ngf8_28x28x1", "ncsnv2", (28, 28, 1)),
    ("ncsnv2_ngf8_32x32x3", "ncsnv2", (32, 32, 3)),
    ("wide_resnet_10_2_bias", "wide_resnet_bias", (32, 32, 3)),
    ("wide_resnet_10_2_nobias", "wide_resnet", (32, 32, 3)),
]


def _golden_file(name):
    return ROOT / "tests" / "golden" / f"{name}.npz"


@pytest.mark.parametrize(("name", "kind", "shape"), GOLDEN)
def test_published_outputs_and_exact_round_trip(golden, name, kind, shape, tmp_path):
    state = torch_weights.read(_golden_file(name))
    model, table = torch_weights.import_model(kind, state, shape)
    used = {entry.source for entry in table}
    assert {k for k in state if not k.endswith(("sigmas", "num_batches_tracked"))} == used
    models.save_model(tmp_path / "m.safetensors", model)
    again = models.load_model(tmp_path / "m.safetensors")
    for a, b in zip(
        jax.tree.leaves(model.variables), jax.tree.leaves(again.variables), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    data = golden(name)
    found = apply(again.network, again.variables, data["x"].transpose(0, 2, 3, 1))
    expected = data["y"].transpose(0, 2, 3, 1) if data["y"].ndim == 4 else data["y"]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_digits_convnet_logits(golden, golden_classifier):
    logits_fn, images, _ = golden_classifier
    expected = golden("autoattack_digits")["logits"]
    np.testing.assert_allclose(jax.jit(logits_fn)(images), expected, atol=1e-4)


def test_ncsnv2_parameter_count():
    network = networks.NCSNv2(features=128)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 29_694_083


@pytest.mark.slow
def test_deeper_ncsnv2_runs_at_64_pixels_and_in_bfloat16():
    network = networks.NCSNv2(features=4, deeper=True)
    images = jax.random.uniform(jax.random.key(0), (1, 64, 64, 3))
    output, variables = network.init_with_output(jax.random.key(1), images)
    assert output.shape == images.shape
    assert variables["params"]["res5_0"]["conv2"]["kernel"].shape == (3, 3, 16, 16)
    assert variables["params"]["refine2"]["msf"]["convs_0"]["kernel"].shape == (3, 3, 16, 8)
    narrow = networks.NCSNv2(features=4, deeper=True, dtype="bfloat16").apply(variables, images)
    assert narrow.dtype == jnp.float32
    assert jnp.abs(narrow - output).mean() < 0.05 * jnp.abs(output).std()


@pytest.mark.ci
@pytest.mark.parametrize(
    "network",
    [networks.PreActResNet18(features=4), networks.PreActResNet18(features=4, final_norm=True)],
)
def test_preact_resnet_round_trip_and_batch_statistics(network, tmp_path):
    images = jax.random.uniform(jax.random.key(0), (4, 16, 16, 3))
    variables = init(network, jax.random.key(1), images)
    model = models.Model("classifier", network, variables, (16, 16, 3))
    models.save_model(tmp_path / "m.safetensors", model)
    again = models.load_model(tmp_path / "m.safetensors")
    assert again.network == network
    np.testing.assert_array_equal(
        apply(network, variables, images), apply(again.network, again.variables, images)
    )
    trained = jax.jit(lambda v: network.apply(v, images, train=True, mutable=["batch_stats"]))
    _, updated = trained(variables)
    before, after = (v["batch_stats"]["layer1_0"]["bn1"]["mean"] for v in (variables, updated))
    captured = {"mutable": ["intermediates"], "capture_intermediates": True}
    _, seen = jax.jit(lambda v: network.apply(v, images, **captured))(variables)
    conv = seen["intermediates"]["conv1"]["__call__"][0]
    # Running mean: 0.9 × old + 0.1 × the batch's.
    np.testing.assert_allclose(
        after, 0.9 * before + 0.1 * conv.mean((0, 1, 2)), rtol=1e-4, atol=1e-6
    )


def test_missing_renamed_and_transposed_are_three_errors_in_one_message(run_binary, tmp_path):
    state = dict(torch_weights.read(_golden_file("ncsnv2_ngf8_32x32x3")))
    state.pop("res1.0.conv1.bias")
    state["res9.0.conv1.weight"] = state.pop("res1.1.conv1.weight")
    state["end_conv.weight"] = state["end_conv.weight"].transpose(1, 0, 2, 3)
    source, out = tmp_path / "broken.npz", tmp_path / "model.safetensors"
    np.savez(source, **state)
    done = run_binary(
        "import_weights", "--kind=ncsnv2", f"--source={source}", f"--out={out}", check=False
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "missing res1.0.conv1.bias" in line
    assert "missing res1.1.conv1.weight (nearest: res9.0.conv1.weight); " in line
    assert "; unexpected res9.0.conv1.weight; " in line
    assert "misshapen end_conv.weight: (8, 3, 3, 3), expected (3, 8, 3, 3)" in line
    assert not out.exists()


def test_import_binary_prints_the_table_and_checks_the_output(run_binary, tmp_path):
    out = tmp_path / "model.safetensors"
    source = _golden_file("wide_resnet_10_2_nobias")
    (tmp_path / "names").write_text("\n".join("abcdefghij"))
    done = run_binary("import_weights", "--kind=wide_resnet", f"--source={source}", f"--out={out}",
                      f"--class_names={tmp_path / 'names'}")  # fmt: skip
    assert "block1.layer.0.convShortcut.weight" in done.stdout
    assert "params/layer1_0/shortcut/kernel" in done.stdout
    assert "of the source's own output" in done.stdout
    found = models.load_model(out, ("classifier",))
    assert (found.network.depth, "".join(found.class_names)) == (10, "abcdefghij")


def test_formats_prefixes_and_lists(tmp_path):
    state = dict(torch_weights.read(_golden_file("wide_resnet_10_2_nobias")))
    prefixed = {f"module.{k}": v for k, v in state.items()}
    safetensors.numpy.save_file(
        {k: np.array(v, order="C") for k, v in prefixed.items()}, tmp_path / "a.safetensors"
    )
    np.savez(tmp_path / "a.npz", **prefixed)
    for path in (tmp_path / "a.safetensors", tmp_path / "a.npz"):
        found = torch_weights.read(path)
        assert found.keys() == state.keys()
        assert all(np.array_equal(found[k], state[k]) for k in state)


def test_torch_files(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"module.w": torch.ones(2, 3), "module.b": torch.zeros(2)}
    averaged = {"w": torch.full((2, 3), 5.0), "b": torch.zeros(2)}
    torch.save([state, {"lr": 0.1}, 7, averaged], tmp_path / "list.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "dict.pt")
    for name in ("list.pth", "dict.pt"):
        found = torch_weights.read(tmp_path / name)
        assert sorted(found) == ["b", "w"]
        np.testing.assert_array_equal(found["w"], np.ones((2, 3)))
    found = torch_weights.read(tmp_path / "list.pth", ema=True)
    np.testing.assert_array_equal(found["w"], np.full((2, 3), 5.0))
    with pytest.raises(InputError, match="holds no averaged state_dict"):
        torch_weights.read(tmp_path / "dict.pt", ema=True)


def test_pickled_code_is_never_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "proof"), "w"))

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read"):
        torch_weights.read(tmp_path / "evil.pth")
    assert not (tmp_path / "proof").exists()


def test_bad_sources_are_named(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"1")
    (tmp_path / "x.npz").write_bytes(b"1")
    for name, message in (
        ("none.npz", "is not a file"),
        ("x.bin", "ends in '.bin'"),
        ("x.npz", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            torch_weights.read(tmp_path / name)
    with pytest.raises(InputError, match="kind: got 'vgg'"):
        torch_weights.import_model("vgg", {})
    with pytest.raises(InputError, match="does not fit wide_resnet: missing block1"):
        torch_weights.import_model("wide_resnet", {"a": np.zeros(2)})
