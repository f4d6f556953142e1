"""The ways of running a PyTorch module: memory layout, eager or compiled, float32 or bfloat16.

"torch" is how published code runs that asks for nothing else: channels first, eager, float32.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: The reason of variants that ``--peers`` leaves out.
NOT_CHOSEN = "not asked for"
#: What says that a CPU multiplies bfloat16 itself, in the words of ``torch.cpu.get_capabilities``.
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a module is made and what its images look like."""

    channels_last: bool = False
    compiled: bool = False
    bfloat16: bool = False
    device: str = "cpu"

    @property
    def label(self) -> str:
        named = {
            "compiled": self.compiled,
            "channels last": self.channels_last,
            "bfloat16": self.bfloat16,
        }
        return ", ".join(["torch", *(name for name, chosen in named.items() if chosen)])

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def arrange(self, images: Tensor) -> Tensor:
        """Images NCHW in the variant's memory layout, on its device."""
        return images.to(self.device).contiguous(memory_format=self.memory_format)

    def prepare(self, module: nn.Module, *, trainable: bool = False) -> nn.Module:
        """The module as it is called: on the device, weights in the layout, frozen unless it is trained.

        Its parameters stay the same objects. A compiled module compiles at its first call.
        """
        module = module.to(self.device, memory_format=self.memory_format)
        module.train(trainable).requires_grad_(trainable)
        if self.bfloat16:
            # Frozen weights are converted once; trained ones stay float32 and are converted in every step.
            module = _Mixed(module) if trainable else _Converted(module.to(torch.bfloat16))
        return _compiled(module) if self.compiled else module


class _Converted(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.to(torch.bfloat16)).float()


class _Mixed(_Converted):
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            return self.inner(images).float()


def _compiled(module: nn.Module) -> nn.Module:
    # A graph break or too many compilations would run parts eagerly without a word: both are errors here.
    torch._dynamo.config.cache_size_limit = 64
    # Without gradients, weights are constants that inductor lays out once, not in every call.
    torch._inductor.config.freezing = True
    return torch.compile(module, fullgraph=True, dynamic=False)


def choose(kinds: Sequence[str], device: str) -> tuple[list[Variant], dict[str, str]]:
    """The variants of the chosen kinds that run here, and label → why the others do not."""
    found, left_out = [], {}
    for bfloat16, compiled, last in itertools.product((False, True), repeat=3):
        kind = ("compiled" if compiled else "eager") + ("_bfloat16" if bfloat16 else "")
        variant = Variant(last, compiled, bfloat16, device)
        problem = (
            (NOT_CHOSEN if kind not in kinds else None)
            or (bfloat16_problem(device) if bfloat16 else None)
            or (compiler_problem(device) if compiled else None)
        )
        if problem is None:
            found.append(variant)
        else:
            left_out[variant.label] = problem
    return found, left_out


@functools.cache
def bfloat16_problem(device: str) -> str | None:
    """Why bfloat16 would not be computed by instructions of its own, or None."""
    if device != "cpu":
        return None if torch.cuda.is_bf16_supported() else "the GPU has no bfloat16 instructions"
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        native = any(found.get(name, False) for name in _BFLOAT16_INSTRUCTIONS)
    else:  # before torch 2.10; true as well where oneDNN emulates it by AVX-512
        native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return None if native else "the CPU has no bfloat16 instructions"


@functools.cache
def compiler_problem(device: str) -> str | None:
    """Why ``torch.compile`` does not work here (no C++ compiler, say), in one line, or None."""
    try:
        _compiled(nn.Tanh())(torch.ones(64, device=device))
    except (RuntimeError, OSError, ImportError) as error:
        lines = str(error).strip().splitlines()
        return f"torch.compile: {lines[0] if lines else type(error).__name__}"
    return None
