"""Published diffusion weights: names both ways, sizes, the averaged list, faults in one line."""

from functools import cache

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from test_diffusion_networks import PUBLISHED

from purify_jax.checks import InputError
from purify_jax.models import expected_shapes, published_names, torch_weights
from purify_jax.models.published_names import declared_order, layout, published_name
from purify_jax.models.published_sizes import KINDS
from purify_jax.networks.diffusion import ADM, DDPMpp, SongUNet

GOLDEN = [
    ("edm_ddpmpp", "edm", {}),
    ("edm_ncsnpp", "edm", {}),
    ("edm_ddpmpp_cond", "edm", {}),
    ("score_sde_ddpmpp", "score_sde", {}),
    ("guided_diffusion", "guided_diffusion", {"head_channels": 16}),
    ("diffpure_vp", "score_sde", {}),
]


@cache
def _stored(name):
    return torch_weights.read(ROOT / "tests" / "golden" / f"{name}.npz")


def weights(name):
    return dict(_stored(name))


@pytest.mark.parametrize(("name", "kind", "fields"), GOLDEN, ids=[g[0] for g in GOLDEN])
def test_nothing_is_left_over_and_the_round_trip_is_exact(name, kind, fields):
    state = weights(name)
    model, table = torch_weights.import_model(kind, state, **fields)
    expected = expected_shapes(model.network, (32, 32, 3))
    assert {entry.target for entry in table} == set(expected)
    assert len({entry.source for entry in table}) == len(table)
    again = torch_weights.export(kind, model.network, model.variables)
    # Beside parameters, files carry resampling filters (remade) and score_sde's noise levels.
    assert set(again) == set(state) - {"sigmas"}
    for key, array in again.items():
        assert array.shape == state[key].shape
        np.testing.assert_array_equal(array, state[key])


def _published(kind, network, side):
    """The names and shapes of a network's published state_dict, with no memory behind them."""
    state = {}
    for target, shape in expected_shapes(network, (side, side, 3)).items():
        source = published_name(kind, target)
        there = layout(kind, source, len(shape)).published_shape(shape)
        state[source] = np.broadcast_to(np.float32(0), there)
    return {**state, **torch_weights.resample_filters(network, state)}


OTHERS = [
    ("guided_uneven", ADM(32, (0.5, 1, 2), num_blocks=1, attention_rates=(4,)), 16),
    ("score_flat", DDPMpp(8, (2,), num_blocks=2, attention_resolutions=(8,)), 8),
    ("score_last", DDPMpp(8, (1, 2), num_blocks=1, attention_resolutions=(8, 4)), 8),
    ("edm_wide", SongUNet(8, (1,), 1, (8,), num_classes=3, augment_dim=0), 8),
]
SIZED = [*(published[:3] for published in PUBLISHED), *OTHERS]


@pytest.mark.parametrize(("name", "network", "side"), SIZED, ids=[s[0] for s in SIZED])
def test_sizes_are_read_off_the_weights(name, network, side):
    families = {"edm": "edm", "score": "score_sde"}
    kind = families.get(name.split("_")[0], "guided_diffusion")
    assert KINDS[kind].build(_published(kind, network, side), (side, side, 3)) == network


def test_what_the_weights_do_not_fit_is_named():
    state = _published("edm", OTHERS[-1][1], 8)
    with pytest.raises(InputError, match="expected the weights' 8 pixels"):
        torch_weights.import_model("edm", state)
    with pytest.raises(InputError, match="head_channels: got 48, expected a divisor of 64"):
        expected_shapes(OTHERS[0][1].clone(head_channels=48), (16, 16, 3))


def test_averaged_list_takes_the_models_order():
    state = weights("score_sde_ddpmpp")
    names = [name for name in state if name != "sigmas"]
    # The stored order is PyTorch's own; a file with its names in another order is read alike.
    assert sorted(names, key=declared_order) == names
    averages = [state[name] + 1 for name in names]
    model = {f"module.{name}": state[name] for name in ["sigmas", *sorted(names)]}
    found = published_names.with_averages(model, averages)
    assert set(found) == set(names)
    assert all(np.array_equal(found[name], state[name] + 1) for name in names)
    with pytest.raises(InputError, match="269 averaged parameters, expected the model's 270"):
        published_names.with_averages(model, averages[1:])
    averages[0], averages[1] = averages[1], averages[0]
    with pytest.raises(InputError, match=r"misshapen all_modules\.0\.weight: \(64,\)"):
        published_names.with_averages(model, averages)
    with pytest.raises(InputError, match="unexpected extra"):
        published_names.with_averages({**model, "extra": averages[0]}, averages)


def test_score_sde_checkpoint_files(tmp_path):
    torch = pytest.importorskip("torch")
    state = weights("score_sde_ddpmpp")
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    shadows = [tensor + 1 for name, tensor in tensors.items() if name != "sigmas"]
    for prefix in ("", "module."):
        checkpoint = {
            "optimizer": {"state": {}, "param_groups": [{"lr": 2e-4}]},
            "model": {prefix + name: tensor for name, tensor in tensors.items()},
            "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": shadows},
            "step": 7,
        }
        torch.save(checkpoint, tmp_path / "checkpoint.pth")
        found = torch_weights.read(tmp_path / "checkpoint.pth", ema=None)
        assert all(np.array_equal(found[k], state[k] + 1) for k in state if k != "sigmas")
    model = {name: tensors[name] for name in ("all_modules.0.weight", "all_modules.0.bias")}
    torch.save({"model": model, "ema": {k: v + 1 for k, v in model.items()}}, tmp_path / "dict.pt")
    found = torch_weights.read(tmp_path / "dict.pt", ema=None)
    assert all(np.array_equal(found[k], state[k] + 1) for k in model)
    for content, message in (
        ({"ema": {"shadow_params": shadows}}, "averaged parameters but no model to name them"),
        ({"step": 7}, "holds no state_dict"),
    ):
        torch.save(content, tmp_path / "half.pth")
        with pytest.raises(InputError, match=message):
            torch_weights.read(tmp_path / "half.pth", ema=None)


def test_edm_files_with_and_without_the_models_prefix(tmp_path):
    state = weights("edm_ddpmpp_cond")
    bare = {k.removeprefix("model."): np.ascontiguousarray(v) for k, v in state.items()}
    safetensors.numpy.save_file(bare, tmp_path / "edm.safetensors")
    found = torch_weights.read(tmp_path / "edm.safetensors")
    variables = [torch_weights.import_model("edm", s)[0].variables for s in (state, found)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *variables))


def test_pickles_are_refused_and_never_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "proof"), "w"))

    torch.save({"ema": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="cannot be read") as caught:
        torch_weights.read(tmp_path / "evil.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "proof").exists()
    with pytest.raises(InputError, match="is a pickle, which runs code") as caught:
        torch_weights.read(tmp_path / "edm-cifar10-32x32-uncond-vp.pkl")
    assert "\n" not in str(caught.value)


def test_all_faults_of_a_damaged_file_are_in_one_line():
    state = weights("edm_ncsnpp")
    state.pop("model.enc.32x32_block0.norm0.bias")
    state["model.enc.32x32_block0.conv9.weight"] = state.pop("model.enc.32x32_block0.conv1.weight")
    state["model.map_layer0.weight"] = state["model.map_layer0.weight"].T
    state["model.dec.16x16_up.skip.resample_filter"] = np.ones((1, 1, 4, 4), np.float32)
    with pytest.raises(InputError) as caught:
        torch_weights.import_model("edm", state)
    message = str(caught.value)
    assert "\n" not in message
    for fault in (
        "missing model.enc.32x32_block0.norm0.bias",
        "missing model.enc.32x32_block0.conv1.weight",
        "unexpected model.enc.32x32_block0.conv9.weight",
        "misshapen model.map_layer0.weight: (32, 64), expected (64, 32)",
        "different model.dec.16x16_up.skip.resample_filter: expected the filter (1, 3, 3, 1)",
    ):
        assert fault in message


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("edm_ddpmpp_cond", "model.enc.32x32_conv.weight"),
        ("edm_ddpmpp_cond", "model.enc.16x16_block0.conv0.weight"),
        ("score_sde_ddpmpp", "all_modules.2.weight"),
        ("score_sde_ddpmpp", "all_modules.0.weight"),
        ("guided_diffusion", "time_embed.0.weight"),
        ("guided_diffusion", "input_blocks.0.0.weight"),
        ("guided_diffusion", "out.2.weight"),
    ],
)
def test_a_transposed_weight_is_the_one_fault(name, key):
    kind = name if name == "guided_diffusion" else name[: name.index("_d")]
    state = weights(name)
    state[key] = state[key].swapaxes(0, 1)
    if state[key].shape[0] == state[key].shape[1]:
        state[key] = state[key][:, :-1]
    with pytest.raises(InputError) as caught:
        torch_weights.import_model(kind, state)
    assert str(caught.value).startswith(f"source: does not fit {kind}: misshapen {key}: ")
    assert ";" not in str(caught.value)


@pytest.mark.parametrize("kind", ["edm", "score_sde", "guided_diffusion"])
def test_weights_of_another_kind_are_named(kind):
    others = {
        "edm": "guided_diffusion",
        "score_sde": "edm_ddpmpp",
        "guided_diffusion": "edm_ddpmpp",
    }
    with pytest.raises(InputError, match=f"does not fit {kind}: missing"):
        torch_weights.import_model(kind, weights(others[kind]))
    with pytest.raises(InputError, match="kind: got 'vgg'"):
        torch_weights.import_model("vgg", {})
