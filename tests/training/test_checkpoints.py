"""Training states survive damage; model files are strict."""

import errno
import os

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from purify_jax import models, networks
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError
from purify_jax.training.checkpoints import TrainingCheckpoints, claim_inputs


def _state(value):
    return {"step": jnp.asarray(value), "w": jnp.full((64, 64), value, jnp.float32)}


def _restore(folder):
    manager = TrainingCheckpoints(folder)
    state = manager.restore_latest(_state(0))
    manager.close()
    return state


def test_last_few_are_kept_and_a_damaged_newest_is_set_aside(tmp_path, caplog):
    manager = TrainingCheckpoints(tmp_path, keep=3)
    for step in (10, 20, 30, 40):
        manager.save(step, _state(step))
    manager.wait()
    manager.close()
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [20, 30, 40]
    assert int(_restore(tmp_path)["step"]) == 40
    for file in (tmp_path / "40").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0" * min(10, file.stat().st_size))
    state = _restore(tmp_path)
    assert int(state["step"]) == 30
    np.testing.assert_array_equal(state["w"], np.full((64, 64), 30))
    assert "40 is damaged" in caplog.text
    assert (tmp_path / "40.damaged").is_dir()
    manager = TrainingCheckpoints(tmp_path, keep=3)
    manager.save(40, _state(41))
    manager.wait()
    manager.close()
    assert int(_restore(tmp_path)["step"]) == 41


NOT_DAMAGED = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    PermissionError(errno.EACCES, "Permission denied"),
    MemoryError(),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
]


@pytest.mark.parametrize("error", NOT_DAMAGED, ids=repr)
def test_what_is_no_damage_is_tried_again_then_raised(tmp_path, monkeypatch, error):
    manager = TrainingCheckpoints(tmp_path)
    manager.save(10, _state(10))
    manager.wait()
    failures, whole = [error], type(manager._manager).restore

    def restore(self, *given, **named):
        if failures:
            raise failures.pop()
        return whole(self, *given, **named)

    monkeypatch.setattr(type(manager._manager), "restore", restore)
    assert int(manager.restore_latest(_state(0))["step"]) == 10
    failures += [error, error]
    with pytest.raises(type(error)):
        manager.restore_latest(_state(0))
    manager.close()
    assert [p.name for p in tmp_path.iterdir()] == ["10"]


def test_a_file_that_cannot_be_read_is_no_damage(tmp_path, monkeypatch):
    """tensorstore's error of the disk is a ValueError; reading the files tells it from damage."""
    manager = TrainingCheckpoints(tmp_path)
    manager.save(10, _state(10))
    manager.wait()

    def broken(*given, **named):
        raise ValueError("DATA_LOSS") if named else OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(type(manager._manager), "restore", broken)
    monkeypatch.setattr(type(tmp_path), "read_bytes", lambda path: broken())
    with pytest.raises(OSError, match="Input/output"):
        manager.restore_latest(_state(0))
    manager.close()
    assert [p.name for p in tmp_path.iterdir()] == ["10"]


def test_a_checkpoint_of_another_form_is_refused_and_stays(tmp_path):
    manager = TrainingCheckpoints(tmp_path)
    manager.save(10, _state(10))
    manager.wait()
    state = _state(0)
    narrow = state["w"].astype(jnp.bfloat16)
    for other, message in (
        ({"step": state["step"], "u": state["w"]}, r"u: absent there, float32\[64, 64\] now"),
        ({**state, "w": narrow}, r"w: float32\[64, 64\] there, bfloat16\[64, 64\] now"),
        ({**state, "w": state["w"][:9]}, r"w: float32\[64, 64\] there, float32\[9, 64\] now"),
    ):
        with pytest.raises(InputError, match=message):
            manager.restore_latest(other)
    manager.close()
    assert [p.name for p in tmp_path.iterdir()] == ["10"]


def test_no_checkpoint_is_none(tmp_path):
    assert _restore(tmp_path / "new") is None


NETWORKS = [
    networks.MLP(features=(8, 8)),
    networks.ConvNet(features=(4, 8), hidden=8),
    networks.UNet(features=(4, 8)),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
def test_model_round_trip_is_exact(network, tmp_path):
    variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    role = "classifier" if isinstance(network, networks.ConvNet) else "score"
    model = models.Model(role, network, variables, (8, 8, 1), {"note": "ψ"})
    models.save_model(tmp_path / "m.safetensors", model)
    again = models.load_model(tmp_path / "m.safetensors")
    assert again.network == network
    assert (again.role, again.image_shape, again.metadata["note"]) == (role, (8, 8, 1), "ψ")
    chex.assert_trees_all_equal(variables, dict(again.variables))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_bfloat16_files_are_widened(tmp_path):
    network = networks.MLP(features=(8,))
    variables = network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    narrow = jax.tree.map(lambda a: np.asarray(a).astype(ml_dtypes.bfloat16), variables)
    path = tmp_path / "m.safetensors"
    models.save_model(path, models.Model("score", network, narrow, (4, 4, 1)))
    again = models.load_model(path)
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(dict(again.variables)), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_array_equal(a.astype(np.float32), b)


def test_every_fault_is_listed_in_one_message(tmp_path):
    network = networks.MLP(features=(8,))
    variables = network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    path = tmp_path / "m.safetensors"
    models.save_model(path, models.Model("score", network, variables, (4, 4, 1)))
    tensors = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        header = file.metadata()
    tensors.pop("params/Dense_0/bias")
    tensors["params/Dense_0/bies"] = np.zeros(8, np.float32)
    tensors["params/Dense_1/kernel"] = np.ascontiguousarray(tensors["params/Dense_1/kernel"].T)
    safetensors.numpy.save_file(tensors, path, header)
    with pytest.raises(InputError) as error:
        models.load_model(path)
    message = str(error.value)
    assert "missing params/Dense_0/bias" in message
    assert "unexpected params/Dense_0/bies" in message
    assert "misshapen params/Dense_1/kernel: (16, 8), expected (8, 16)" in message


def test_bad_files_are_named(tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        models.load_model(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"hello")
    with pytest.raises(InputError, match="damaged or not safetensors"):
        models.load_model(tmp_path / "bad.safetensors")
    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="has no purify_jax header"):
        models.load_model(tmp_path / "other.safetensors")
    network = networks.MLP(features=(8,))
    variables = network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    model = models.Model("score", network, variables, (4, 4, 1))
    models.save_model(tmp_path / "m.safetensors", model)
    with pytest.raises(InputError, match="is a score, expected classifier"):
        models.load_model(tmp_path / "m.safetensors", ("classifier",))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_work_directory_is_for_the_weights_that_its_training_began_with(tmp_path):
    first = {"start": {"w": np.arange(3.0)}, "purifier": None}
    claim_inputs(tmp_path, first)
    claim_inputs(tmp_path, first)
    claim_inputs(None, {"start": 1.0})
    for other in (
        {"start": {"w": np.arange(3.0) + 1e-7}},  # another value, dtype, name, and none at all
        {"start": {"w": np.arange(3)}},
        {"start": {"v": np.arange(3.0)}},
        {"start": None},
    ):
        with pytest.raises(InputError, match="start: its weights are not those that the training"):
            claim_inputs(tmp_path, other)
    with pytest.raises(InputError, match="purifier: its weights"):
        claim_inputs(tmp_path, {**first, "purifier": 0.5})
    (tmp_path / "inputs.json").write_text("{")
    with pytest.raises(InputError, match=r"inputs.json is damaged"):
        claim_inputs(tmp_path, first)
    # A training that began at random parameters leaves no file, and goes on from none.
    claim_inputs(tmp_path / "random", {"start": None})
    assert not (tmp_path / "random").exists()
    (tmp_path / "random" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match="start: its weights are not those"):
        claim_inputs(tmp_path / "random", first)
