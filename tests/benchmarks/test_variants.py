"""A variant of a PyTorch module computes what the eager module computes, and what cannot run is left out."""

import types

import numpy as np
import pytest

from benchmarks import settings as sizes

torch = pytest.importorskip("torch")
from twins import check_close, input_gradient, nchw, nhwc, randomised  # noqa: E402

from benchmarks.peers import torch_published, variants  # noqa: E402
from benchmarks.peers.torch_shuffled_unet import ShuffledUNet  # noqa: E402
from experiments.defenses.torch_whitened_convnet import WhitenedConvNet  # noqa: E402


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((3, 32, 32, 3), np.float32)


def test_variants_are_labelled_arranged_and_left_out_with_a_reason():
    found, left_out = variants.choose(("eager",), "cpu")
    assert [v.label for v in found] == ["torch", "torch, channels last"]
    assert left_out["torch, compiled, channels last"] == variants.NOT_CHOSEN
    assert left_out["torch, channels last, bfloat16"] == variants.NOT_CHOSEN
    for variant, channel_stride in zip(found, (64, 1), strict=True):
        assert variant.arrange(torch.rand(2, 3, 8, 8)).stride(1) == channel_stride
        module = variant.prepare(torch.nn.Conv2d(3, 4, 3))
        assert module.weight.stride(1) == (9 if channel_stride == 64 else 1)
        assert not module.training
        assert not module.weight.requires_grad


def test_without_instructions_or_a_compiler_there_are_fewer_variants(monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("No working C++ compiler found\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", refuse)
        patch.setattr(
            torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "avx2": True}, False
        )
        for function in (variants.bfloat16_problem, variants.compiler_problem):
            function.cache_clear()
        found, left_out = variants.choose(sizes.PEERS, "cpu")
    for function in (variants.bfloat16_problem, variants.compiler_problem):
        function.cache_clear()
    assert [v.label for v in found] == ["torch", "torch, channels last"]
    assert left_out["torch, compiled"] == "torch.compile: No working C++ compiler found"
    assert left_out["torch, bfloat16"] == "the CPU has no bfloat16 instructions"


def test_bfloat16_modules_take_and_return_float32(images):
    module = randomised(ShuffledUNet((4, 4, 4), blocks=1))
    x = nchw(images[:, :16, :16])
    expected = module(x).detach()
    variant = variants.Variant(bfloat16=True)
    assert variant.label == "torch, bfloat16"
    trained = variant.prepare(module, trainable=True)
    for found in (trained(x), variant.prepare(module)(x)):
        assert found.dtype == torch.float32
        error = (found - expected).abs().max()
        assert 0 < error < 0.1 * expected.abs().max()
        assert next(module.parameters()) is next(trained.parameters())


@pytest.mark.slow
def test_compiled_modules_compute_what_eager_ones_compute(images):
    if problem := variants.compiler_problem("cpu"):
        pytest.skip(problem)
    eager, x = randomised(WhitenedConvNet((4, 4, 4))).eval(), nchw(images)
    expected, slope = eager(x).detach(), input_gradient(eager, images)
    variant = variants.Variant(channels_last=True, compiled=True)
    module = variant.prepare(WhitenedConvNet((4, 4, 4)))
    module.load_state_dict({f"_orig_mod.{k}": v for k, v in eager.state_dict().items()})
    arranged = variant.arrange(x)
    with torch.no_grad():
        check_close(module(arranged).numpy(), expected.numpy())
    leaf = arranged.clone(memory_format=torch.preserve_format).requires_grad_(True)
    check_close(nhwc(torch.autograd.grad((module(leaf) ** 2).sum(), leaf)[0]), slope)


@pytest.mark.slow
def test_a_compiled_training_step_is_the_eager_one(images):
    if problem := variants.compiler_problem("cpu"):
        pytest.skip(problem)
    trained = []
    for compiled in (False, True):
        inner, average = (randomised(WhitenedConvNet((4, 4, 4))) for _ in range(2))
        inner.whitening.copy_(torch.eye(12).repeat(2, 1).reshape(24, 3, 2, 2))
        module = variants.Variant(compiled=compiled).prepare(inner, trainable=True)
        optimizer = torch.optim.SGD(inner.parameters(), 0.1, momentum=0.9, fused=True)
        torch.manual_seed(0)
        for _ in range(2):
            torch_published.classifier_step(
                module, average, optimizer, nchw(images), torch.tensor([0, 1, 2])
            )
        trained.append(types.SimpleNamespace(inner=inner, average=average))
    first, second = trained
    before = randomised(WhitenedConvNet((4, 4, 4)))
    floats = {k: v for k, v in first.inner.state_dict().items() if v.is_floating_point()}
    for name, value in floats.items():
        check_close(second.inner.state_dict()[name].numpy(), value.numpy())
    moved = first.inner.head.weight - before.head.weight
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(first.average.head.weight, second.average.head.weight)
