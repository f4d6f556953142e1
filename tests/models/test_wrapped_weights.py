"""Published files as people save them: wrappers, containers, types of tensors, normalisation outside the weights."""

import itertools

import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from purify_jax.checks import InputError
from purify_jax.models import accuracies_by_normalisation, published_names, torch_weights
from purify_jax.models.model import Model

GOLDEN = ROOT / "tests" / "golden" / "wide_resnet_10_2_nobias.npz"
#: Values that bfloat16 and float8 hold exactly.
SMALL = {"conv1.weight": np.ones((2, 3), np.float32), "fc.bias": np.arange(2, dtype=np.float32)}
WRAPPERS = ("module.", "model.", "_orig_mod.", "net.")


@given(prefix=st.lists(st.sampled_from(WRAPPERS), max_size=3).map("".join))
def test_wrappers_are_removed_whatever_their_order(prefix):
    found = published_names.unwrapped({f"{prefix}{name}": v for name, v in SMALL.items()})
    assert found.keys() == SMALL.keys()


def test_names_that_would_become_one_stay_as_they_are():
    both = {"module.a": 1, "a": 2}
    assert published_names.unwrapped(both) == both


def _same(found):
    found = published_names.unwrapped(found)
    assert found.keys() == SMALL.keys()
    for name, array in SMALL.items():
        np.testing.assert_array_equal(np.asarray(found[name], np.float32), array)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def _tensors(torch, change=lambda t: t):
    return {name: change(torch.from_numpy(array.copy())) for name, array in SMALL.items()}


KINDS = {
    "float32": lambda torch: lambda t: t,
    "bfloat16": lambda torch: lambda t: t.bfloat16(),
    "half": lambda torch: lambda t: t.half(),
    "double": lambda torch: lambda t: t.double(),
    "Parameter": lambda torch: torch.nn.Parameter,
    "bfloat16 Parameter": lambda torch: lambda t: torch.nn.Parameter(t.bfloat16()),
    "float8": lambda torch: lambda t: t.to(torch.float8_e5m2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_every_type_are_read(torch, tmp_path, kind):
    torch.save(_tensors(torch, KINDS[kind](torch)), tmp_path / "a.pt")
    _same(torch_weights.read(tmp_path / "a.pt"))


CONTAINERS = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"lr": 0.1}},
    "net": lambda s: {"net": s, "acc": 95.1, "epoch": 3},
    "model": lambda s: {"model": s, "args": {"lr": 1}},
    "ema alone": lambda s: {"ema": s},
    "Lightning": lambda s: {
        "state_dict": {f"net.{k}": v for k, v in s.items()},
        "pytorch-lightning_version": "2.4.0", "callbacks": {}, "optimizer_states": [{"state": {}}],
    },
    "DataParallel, compiled": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "inside another": lambda s: {"checkpoint": 1, "model": {"state_dict": s}},
    "any other name": lambda s: {"generator": s, "step": 3},
    "with numbers": lambda s: {**s, "version": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_are_opened(torch, tmp_path, name):
    torch.save(CONTAINERS[name](_tensors(torch)), tmp_path / "a.ckpt")
    _same(torch_weights.read(tmp_path / "a.ckpt"))


def test_averaged_weights_are_taken_where_they_are_asked_for(torch, tmp_path):
    doubled = _tensors(torch, lambda t: 2 * t)
    for name, key in itertools.product(published_names.AVERAGES, ("state_dict", "net")):
        torch.save({key: _tensors(torch), name: doubled}, tmp_path / "a.pt")
        _same(torch_weights.read(tmp_path / "a.pt"))
        _same({k: v / 2 for k, v in torch_weights.read(tmp_path / "a.pt", ema=True).items()})


@pytest.mark.parametrize("content", [{"epoch": 3, "optimizer": {"lr": 0.1}}, {"a": {}}, 7, {}])
def test_a_file_without_weights_is_answered_with_what_it_holds(torch, tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(
        InputError, match="holds no state_dict, but .*; expected one at its top"
    ) as e:
        torch_weights.read(tmp_path / "a.pt")
    assert all(str(name) in str(e.value) for name in (content if isinstance(content, dict) else []))


def test_bfloat16_is_read_from_other_formats_too(tmp_path):
    import ml_dtypes

    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in SMALL.items()}
    safetensors.numpy.save_file(half, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **half)
    for suffix in ("safetensors", "npz"):
        _same(torch_weights.read(tmp_path / f"a.{suffix}"))


# --- what does not fit ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    return dict(torch_weights.read(GOLDEN))


def test_every_name_and_its_nearest_are_said(published):
    name = "block3.layer.0.bn2.bias"
    moved = {k.replace("bn2", "norm2") if k == name else k: v for k, v in published.items()}
    moved["extra"] = np.zeros(2, np.float32)
    with pytest.raises(InputError) as error:
        torch_weights.import_model("wide_resnet", moved)
    text = str(error.value)
    assert f"missing {name} (nearest: block3.layer.0.norm2.bias)" in text
    assert "unexpected block3.layer.0.norm2.bias; unexpected extra; " in text
    assert text.endswith(f"of the file's {len(moved)} tensors fit")
    assert "\n" not in text


def test_a_file_of_another_network_is_answered_with_its_names():
    with pytest.raises(InputError, match="missing .*; the file holds conv1.weight, fc.bias$"):
        torch_weights.import_model("wide_resnet", SMALL)


# --- normalisation ----------------------------------------------------------------------------

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.75)
LAYERS = {
    "RobustBench's buffers": ("mu", "sigma", ""),
    "a layer before the network": ("normalize.mean", "normalize.std", "model."),
    "a Sequential": ("0.mean", "0.std", "1."),
    "a Sequential in DataParallel": ("module.0.mean", "module.0.std", "module.1."),
    "MadryLab's robustness": ("module.normalizer.new_mean", "module.normalizer.new_std", "module.model."),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_normalisation_in_the_file_becomes_the_networks(published, name):
    mean, std, prefix = LAYERS[name]
    state = {f"{prefix}{k}": v for k, v in published.items()}
    of = lambda values: np.asarray(values, np.float32).reshape(1, 3, 1, 1)
    state |= {mean: of(MEAN), std: of(STD)}
    model, _ = torch_weights.import_model("wide_resnet", state)
    assert (model.network.mean, model.network.std) == (MEAN, STD)
    other, _ = torch_weights.import_model("wide_resnet", state, mean=(0.5,), std=(1.0,))
    assert (other.network.mean, other.network.std) == ((0.5,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": (0.5,)}, "mean: got it alone"),
        (
            {"mean": (125.3,), "std": (63.0,)},
            "mean: got 125.3, expected a finite number >= 0 and <= 1",
        ),
        ({"mean": (0.5,), "std": (0.0,)}, "std: got 0"),
        ({"mean": (0.5, 0.5), "std": (1.0,)}, "mean: got 2 numbers"),
    ],
)
def test_a_normalisation_that_makes_no_sense_is_refused(published, fields, message):
    with pytest.raises(InputError, match=message):
        torch_weights.import_model("wide_resnet", published, **fields)


def test_half_a_normalisation_is_refused(published):
    with pytest.raises(InputError, match="holds mu, the mean of the data, expected both or none"):
        torch_weights.import_model("wide_resnet", {**published, "mu": np.zeros(3)})


def test_accuracy_says_which_normalisation_the_weights_were_trained_with():
    """A linear classifier of the mean colour, right only for images in [-1, 1]."""
    import flax.linen as nn
    import jax.numpy as jnp

    class Signed(nn.Module):
        mean: tuple | None = None
        std: tuple | None = None

        @nn.compact
        def __call__(self, images):
            x = (
                images
                if self.mean is None
                else (images - jnp.array(self.mean)) / jnp.array(self.std)
            )
            bright = jnp.mean(x, axis=(1, 2, 3))
            return jnp.stack([-bright, bright], -1)

    images = np.linspace(0.05, 0.95, 8, dtype=np.float32)[:, None, None, None] * np.ones(
        (1, 4, 4, 3), np.float32
    )
    labels = (images[:, 0, 0, 0] > 0.5).astype(int)
    for network, own in ((Signed(), 0.5), (Signed((0.5,) * 3, (0.5,) * 3), 1.0)):
        model = Model("classifier", network, {}, (4, 4, 3))
        found = accuracies_by_normalisation(model, images, labels)
        assert found.pop("as imported") == own
        assert found["no normalisation"] == 0.5
        assert found["--mean=0.5 --std=0.5 (images in [-1, 1])"] == 1.0


def test_the_binary_takes_mean_and_std_and_says_how_many_images_are_right(run_binary, tmp_path):
    given = ("--mean=0.47", "--std=64/255")
    out = f"--out={tmp_path}/a.safetensors"
    done = run_binary("import_weights", "--kind=wide_resnet", f"--source={GOLDEN}", out, *given)
    assert "of the source's own output" in done.stdout
    assert "normalisation: mean 0.47,0.47,0.47, std 0.251,0.251,0.251; 0." in done.stdout
    assert "of 64 images of cifar10_photos are right" in done.stdout
