"""The benchmark compares like with like: PyTorch's code computes what the library computes."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import keys_for

import purify_jax as pj
from benchmarks import growth, ratios, timing
from purify_jax import attacks, energy, networks, purifiers


def _ours(name):
    """The path of a parameter of benchmarks.peers.torch_ncsnv2 in networks.NCSNv2."""
    name = re.sub(r"^begin", "begin_conv", name)
    name = re.sub(r"^end", "end_conv", name)
    name = re.sub(r"^norm\.", "normalizer.", name)
    name = re.sub(r"\bnorm([12])", r"normalize\1", name)
    name = re.sub(r"^down\.(\d)\.(\d)", lambda m: f"res{int(m[1]) + 1}_{m[2]}", name)
    name = re.sub(r"^(res2_0\.(conv2|shortcut))", r"\1.conv", name)
    name = re.sub(r"^up\.(\d)", lambda m: f"refine{int(m[1]) + 1}", name)
    block = r"blocks\.(\d)\.(\d)"
    name = re.sub(block, lambda m: f"{int(m[1]) + 1}_{int(m[2]) + 1}_conv", name)
    name = re.sub(r"\.adapt\.(\d)", r".adapt_convs_\1", name)
    name = re.sub(r"\.fuse\.(\d)", r".msf.convs_\1", name)
    name = re.sub(r"\.pool\.(\d)", r".crp.convs_\1", name)
    return name.replace(".output.", ".output_convs.").replace(".weight", ".kernel")


@pytest.fixture(scope="module")
def twins():
    """The same random NCSNv2 in PyTorch and, as a score function, in JAX; and two images."""
    torch = pytest.importorskip("torch")
    from benchmarks.peers.torch_ncsnv2 import NCSNv2

    torch.manual_seed(0)
    module = NCSNv2(8).eval().requires_grad_(False)
    network = networks.NCSNv2(features=8)
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    # Only the shapes: every parameter is PyTorch's.
    params = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    flat = {
        ".".join(k.key for k in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    unused = [n for n, _ in module.named_parameters() if n.startswith("up.0.fuse")]
    for name, value in module.named_parameters():
        if name not in unused:
            array = value.numpy()
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
            assert flat[_ours(name)].shape == array.shape, name
            flat[_ours(name)] = jnp.asarray(array)
    assert len(flat) == len(list(module.parameters())) - len(unused)
    _, tree = jax.tree.flatten(params)
    score_fn = energy.NetworkScore(network, jax.tree.unflatten(tree, list(flat.values())))
    return torch, module, score_fn, images


def _nchw(torch, images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.slow
def test_pytorch_network_purification_and_gradients_are_the_librarys(twins):
    torch, module, score_fn, images = twins
    from benchmarks.peers import torch_published

    back = lambda x: x.numpy().transpose(0, 2, 3, 1)
    x = _nchw(torch, images)
    np.testing.assert_allclose(back(module(x)), score_fn(images), atol=1e-4)
    # Without noise both are deterministic; a large rate, so that something moves.
    steps, rate = 2, 0.5
    purifier = purifiers.ADP(
        score_fn, purifiers.Adaptive(rate), num_steps=steps, noise_scale=0.0, num_restarts=1
    )
    options = {"steps": steps, "noise_scale": 0.0, "rate": rate}
    theirs = torch_published.purify_restarts(module, x, 1, **options)
    ours, _ = jax.jit(purifier)(keys_for(2), images)
    assert np.abs(ours[0] - images).max() > 0.01
    np.testing.assert_allclose(back(theirs[0]), ours[0], atol=1e-4)

    labels = np.array([0, 2])
    model = pj.Defense(purifier, lambda images: 5 * jnp.mean(images, axis=(1, 2)))
    classify = lambda images: 5 * images.mean((2, 3))
    for factory, exact in ((attacks.ExactGradient, True), (attacks.bpda, False)):
        options |= {"exact": exact, "restarts": 1, "samples": 1}
        found = torch_published.gradient(module, classify, x, torch.from_numpy(labels), **options)
        expected, _ = jax.jit(factory(model))(keys_for(2), images, labels)
        np.testing.assert_allclose(
            back(found), expected, atol=0.02 * float(jnp.abs(expected).max())
        )


@pytest.mark.ci
def test_pytorchs_graph_grows_with_the_steps(twins):
    torch, module, _, images = twins
    from benchmarks.peers import torch_published

    def stored(steps):
        leaf = _nchw(torch, images).requires_grad_(True)
        return torch_published.stored_bytes(
            lambda: torch_published.purify(module, leaf, steps=steps, noise_scale=0.1)
        )

    assert stored(4) - stored(2) == pytest.approx(2 * (stored(2) - stored(1)), rel=0.05)


def test_wide_resnets_have_the_same_parameters():
    pytest.importorskip("torch")
    from benchmarks.peers.torch_wide_resnet import WideResNet

    theirs = sum(p.numel() for p in WideResNet(10, 2).parameters())
    network = networks.WideResNet(depth=10, width=2)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert theirs == sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))


def test_rates_ratios_and_shares_of_the_peak():
    times = {"jax": [2.0, 1.0, 4.0], "torch": [5.0, 4.0, 3.0]}
    ours, theirs = ratios.rows("work", times, 10, "images_per_s", {"jax": 40.0})
    assert ours["images_per_s"] == 5  # 10 in the median of 2 seconds
    assert ours["images_per_s_range"] == [2.5, 10]
    assert ours["ratio to torch"] == 2
    ratios.state_shares({"sections": {"": [ours, theirs]}, "matmul_peak_flops_per_s": 100.0})
    assert (ours["flops_per_s"], ours["share_of_peak"]) == (20, 0.2)
    assert theirs["ratio to torch"] == 1
    assert ratios.table([ours, theirs]).count("\n") == 3


def test_ratios_are_to_every_peer_and_to_the_best_of_the_same_dtype():
    times = {
        "jax": [2.0, 1.0, 4.0],
        "jax, bfloat16": [1.0, 1.0, 1.0],
        "torch": [6.0, 5.0, 4.0],
        # The fastest round is not what counts: its median is 9.
        "torch, channels last": [0.1, 9.0, 9.0],
        "torch, compiled": [3.0, 3.0, 3.0],
        "torch, compiled, bfloat16": [0.5, 0.5, 0.5],
    }
    found = {row["code"]: row for row in ratios.rows("work", times, 1, "images_per_s", {})}
    assert found["jax"]["ratio to torch"] == 2.5
    assert found["jax"]["ratio to torch, channels last"] == 4.5
    assert (found["jax"]["ratio_to_best"], found["jax"]["best"]) == (1.5, "torch, compiled")
    half = found["jax, bfloat16"]
    assert (half["ratio_to_best"], half["best"]) == (0.5, "torch, compiled, bfloat16")
    assert found["torch"]["ratio_to_best"] == 0.6
    assert found["torch, compiled"]["ratio_to_best"] == 1
    assert ratios.summary(found.values()).splitlines() == [
        "work: jax 2 s, torch, compiled 3 s, ratio 1.50",
        "work: jax, bfloat16 1 s, torch, compiled, bfloat16 0.5 s, ratio 0.50",
    ]
    (alone,) = ratios.rows("work", {"jax": [1.0]}, 1, "images_per_s", {})
    assert "ratio_to_best" not in alone
    assert ratios.summary([alone]) == ""


def test_only_what_may_fail_is_left_out_with_a_line(capsys):
    def fail():
        raise RuntimeError("no compiler\nmore")

    times = timing.alternate({"a": lambda: None, "b": fail}, 2, may_fail=["b"])
    assert list(times) == ["a"]
    assert len(times["a"]) == 2
    assert capsys.readouterr().err == "left out: b: no compiler\n"
    with pytest.raises(RuntimeError, match="no compiler"):
        timing.alternate({"a": fail}, 2, may_fail=["b"])
    assert ratios.compiled(["jax", "torch", "torch, compiled, channels last"]) == [
        "torch, compiled, channels last"
    ]


def test_rounds_alternate_after_a_warm_up():
    calls = []
    times = timing.alternate({n: lambda n=n: calls.append(n) for n in "ab"}, 2)
    assert calls == ["a", "b"] * 3
    assert [len(t) for t in times.values()] == [2, 2]


@pytest.mark.ci
def test_the_binary_measures_and_writes(tmp_path, run_binary):
    out = tmp_path / "found.json"
    done = run_binary(
        "benchmarks.run", "--sections", "accuracy", "--accuracy_images", "16", "--out", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    clean, attacked = found["sections"]["accuracy"]
    assert min(clean["secant"], clean["finite difference"]) > 0.8
    assert attacked["95% interval"][0] <= attacked["difference, points"]
    assert found["matmul_peak_flops_per_s"] > 1e8
    assert found["command"].startswith("python -m benchmarks.run --sections accuracy")
    assert found["commit"]
    assert "digits, blind PGD 0.15" in done.stdout


def test_slopes_on_log_axes_are_those_of_powers():
    rows = [{"images": n, "seconds": 0.1 * n**1.5, "compiling": 4.0} for n in (32, 64, 128)]
    assert growth.slope("images", rows, "seconds") == pytest.approx(1.5)
    assert growth.slope("images", rows, "compiling") == pytest.approx(0.0, abs=1e-9)
    slopes = {"images": {name: growth.slope("images", rows, name) for name in rows[0]}}
    rows = [row | {"megabytes": 1.0} for row in rows]
    assert growth.draw(
        {"images": rows}, {"images": slopes["images"] | {"megabytes": 0.0}}
    ).startswith(b"\x89PNG")
