"""PyTorch's twins are the defenses that ship, and all ways are judged alike."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import purify_jax as pj
from purify_jax.checks import InputError
from purify_jax.evaluation import worst_of
from purify_jax.keys import fold_keys, image_keys, normal_like, stream

torch = pytest.importorskip("torch")


@pytest.mark.ci
@pytest.mark.parametrize(("name", "data"), [("digits", "digits"), ("cifar10", "cifar10_photos")])
def test_a_twin_has_the_defenses_answers_and_gradients(name, data):
    from benchmarks.peers.torch_defenses import DEFENSES

    defense = pj.pretrained.load(name).defense
    images, labels = pj.load_split(data, "test").take(3).batch(np.arange(3))
    labels = (labels + 1) % 10  # the right ones are all but certain, and have no gradient
    keys = image_keys(jax.random.key(1), np.arange(3))
    restarts = [fold_keys(keys, r) for r in range(defense.purifier.num_restarts)]
    restarts = restarts if name == "digits" else [stream(key, "start") for key in restarts]
    noise = np.stack([normal_like(key, images) for key in restarts])
    of_labels = lambda x: defense(keys, x)[np.arange(3), labels].sum()
    leaf = torch.tensor(images.transpose(0, 3, 1, 2)).requires_grad_(True)
    found = DEFENSES[name]()(leaf, torch.tensor(noise.transpose(0, 1, 4, 2, 3)))
    expected = np.asarray(jax.jit(defense)(keys, images))
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-3, atol=1e-4)
    picked = found[torch.arange(3), torch.tensor(labels).long()].sum()
    gradient = torch.autograd.grad(picked, leaf)[0].numpy().transpose(0, 2, 3, 1)
    expected = np.asarray(jax.jit(jax.grad(of_labels))(images))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_pgd_takes_as_many_passes_as_it_says_and_stays_in_the_ball():
    from benchmarks.peers import torch_attacks

    weights = torch.linspace(-1, 1, 12).reshape(12, 1) * torch.tensor([[1.0, -1.0]])
    linear = lambda x: torch.log_softmax(x.flatten(1) @ weights, 1)
    counted = torch_attacks.Counted(linear)
    images, labels = torch.full((4, 3, 2, 2), 0.5), torch.tensor([0, 0, 1, 1])
    moved = torch_attacks.pgd_eot(counted, images, labels, epsilon=0.1, steps=10)
    # Steps of 0.22 ε along a constant sign end in the corner that is worst for the label.
    worst = -0.1 * torch.sign(torch.linspace(-1, 1, 12)).reshape(3, 2, 2)
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None, None, None]
    torch.testing.assert_close(moved, 0.5 + sign * worst)
    assert counted.backward_images == 4 * 10 * torch_attacks.EOT


def test_autoattack_as_packaged_stays_in_the_ball_and_finds_what_pgd_finds():
    pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
    from benchmarks.peers import torch_attacks

    torch.manual_seed(0)
    weights = torch.randn(12, 10)
    counted = torch_attacks.Counted(lambda x: x.flatten(1) @ weights)
    images = torch.rand(6, 3, 2, 2)
    labels = counted(images).argmax(1)
    moved = torch_attacks.autoattack(counted, images, labels, 0.3, batch_size=6, steps=10)
    assert (moved - images).abs().max() <= 0.3 + 1e-6
    wrong = counted(moved).argmax(1) != labels
    other = torch_attacks.pgd_eot(counted, images, labels, 0.3, steps=10)
    assert wrong.sum() >= (counted(other).argmax(1) != labels).sum() > 0


def test_images_are_judged_in_the_ball_whatever_the_type_of_the_data():
    from benchmarks import accuracy

    ready = pj.pretrained.load("cifar10")
    test = pj.load_split("cifar10_photos", "test").take(4)
    images, labels = test.batch(np.arange(4))
    found = accuracy.judge(ready.defense, test, images, epsilon=8 / 255, draws=2)
    answers = worst_of.correct_draws(jax.random.key(1), ready.defense, images, labels, 2)
    assert found["average"] == pytest.approx(answers.mean())
    assert found["worst of 2"] == answers.all(1).mean()
    with pytest.raises(InputError, match="adversarial: 0.1 from the images, expected 0.0313"):
        accuracy.judge(ready.defense, test, images + 0.1, epsilon=8 / 255, draws=2)
    with pytest.raises(InputError, match="adversarial: nan"):
        accuracy.judge(ready.defense, test, np.nan * images, epsilon=8 / 255, draws=2)


def test_the_memory_is_that_of_the_child():
    from benchmarks import child

    large = np.ones(200_000_000, np.uint8)  # of this process alone
    command = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert 0 < child.peak_bytes(process.pid) < 100_000_000 < len(large)
        process.kill()
    assert child.peak_bytes(process.pid) == 0
    assert child.peak_bytes() > 200_000_000


@pytest.mark.slow
def test_both_sides_are_measured_and_judged_alike(run_binary, tmp_path):
    file = tmp_path / "found.json"
    run_binary(
        "benchmarks.whole_answer", "--images=4", "--batch_size=4", "--draws=2", "--peer_steps=2",
        "--ways=honest:4,pgd_eot", f"--out={file}",
    )  # fmt: skip
    ours, peer = json.loads(file.read_text())["rows"]
    assert (ours["way"], peer["way"]) == ("honest:4", "pgd_eot")
    assert peer["backward passes"] == 2 * 20
    for row in (ours, peer):
        assert 0 <= row["worst of 2"] <= row["average"] <= 1
        assert row["seconds"] > 1
        assert row["megabytes"] > 50
