"""The 3×3 convolutions that take most of each network's time, by themselves: where kernels are the bound.

Ours run inside a ``lax.scan`` loop, where training, purification and attack steps run them, and
PyTorch's in a Python loop; both call on the same arrays and drop each output for the next. A matrix
product beside them says what the machine gives either library.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import ratios, timing
from benchmarks.networks import subjects
from benchmarks.settings import Settings, counted_flops, torch_or_none
from purify_jax.costs import multiplications, programs
from purify_jax.networks.convolution import convolve

#: Calls of a loop.
CALLS = 4
#: A convolution is measured if it takes this share of its network's forward FLOPs.
SHARE = 0.2
MATRIX = 2048


@dataclasses.dataclass(frozen=True)
class Shape:
    """A 3×3 convolution of stride 1 that keeps the images' size."""

    batch: int
    size: int
    inputs: int
    outputs: int
    dilation: int = 1

    def __str__(self) -> str:
        dilated = f", dilation {self.dilation}" if self.dilation > 1 else ""
        channels = f"{self.inputs} → {self.outputs}"
        return f"{channels}, {self.size}×{self.size}, batch {self.batch}{dilated}"

    @property
    def images(self) -> tuple[int, int, int, int]:
        return (self.batch, self.size, self.size, self.inputs)

    @property
    def result(self) -> tuple[int, int, int, int]:
        return (self.batch, self.size, self.size, self.outputs)

    @property
    def kernel(self) -> tuple[int, int, int, int]:
        return (3, 3, self.inputs, self.outputs)


def measure(settings: Settings) -> list[dict[str, Any]]:
    """Rows for the matrix product and, per convolution, for forward pass and both gradients."""
    rows = _matrix_product(settings)
    for subject in subjects.chosen(settings):
        for shape, share in dominant(subject).items():
            about = {"network": subject.label, "share of its forward": share}
            rows += [row | about for row in _convolution(settings, shape)]
    return rows


def dominant(subject: subjects.Subject) -> dict[Shape, float]:
    """Shape → share of the network's forward FLOPs, of the convolutions that take the most."""
    network, images = subject.make("float32"), jnp.zeros((subject.batch, 32, 32, 3))
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    everything = multiplications(network.apply, variables, images)
    found: dict[Shape, float] = collections.defaultdict(float)
    for shape in _convolutions(jax.make_jaxpr(network.apply)(variables, images).jaxpr):
        pairs = shape.batch * shape.size**2 * shape.inputs * shape.outputs
        found[shape] += 2 * 9 * pairs / everything
    most = sorted(found.items(), key=lambda item: -item[1])
    return {shape: share for shape, share in most if share >= SHARE}


def _convolutions(program: Any) -> Iterator[Shape]:
    for equation in program.eqns:
        if equation.primitive.name == "purify_conv":
            images, kernel = (v.aval.shape for v in equation.invars)
            result, dilation = equation.outvars[0].aval.shape, equation.params["dilation"]
            if kernel[:2] == (3, 3) and result[:3] == images[:3] and images[1] == images[2]:
                yield Shape(images[0], images[1], images[3], kernel[3], dilation[0])
        for inside in programs(equation.params):
            yield from _convolutions(inside)


def _convolution(settings: Settings, shape: Shape) -> list[dict[str, Any]]:
    conv = lambda x, k: convolve(x, k, dilation=(shape.dilation, shape.dilation))
    flops = CALLS * counted_flops(conv, jnp.zeros(shape.images), jnp.zeros(shape.kernel))
    functions: dict[str, Callable] = {
        "forward": lambda k, x, y: conv(x, k),
        "images' gradient": lambda k, x, y: jax.vjp(lambda x: conv(x, k), x)[1](y)[0],
        "kernel's gradient": lambda k, x, y: jax.vjp(lambda k: conv(x, k), k)[1](y)[0],
    }
    random = lambda i, shape: jax.random.normal(jax.random.key(i), shape)
    kernel, x, y = random(0, shape.kernel), random(1, shape.images), random(2, shape.result)
    peers = _torch_convolutions(settings, shape)
    rows = []
    for name, function in functions.items():
        loop = repeated(function)
        ours = {"jax": lambda loop=loop: jax.block_until_ready(loop(kernel, x, y))}
        times = timing.alternate(ours | peers.get(name, {}), settings.repeats)
        what = f"{shape}: {name}"
        rows += ratios.rows(what, times, CALLS, "calls_per_s", dict.fromkeys(times, flops))
    return rows


def repeated(function: Callable) -> Callable:
    """CALLS calls on the same arrays in a compiled loop that copies none of them; the last result.

    The barrier makes each call wait for the one before; without it XLA would call once, ahead of the loop.
    """

    def loop(*arrays: jax.Array) -> jax.Array:
        result = jax.eval_shape(function, *arrays)
        last = jnp.zeros(result.shape, result.dtype)

        def call(carry: tuple, _: None) -> tuple[tuple, None]:
            *given, _previous = jax.lax.optimization_barrier(carry)
            return (*given, function(*given)), None

        return jax.lax.scan(call, (*arrays, last), None, length=CALLS)[0][-1]

    return jax.jit(loop)


def _torch_convolutions(settings: Settings, shape: Shape) -> dict[str, dict[str, Callable]]:
    """Name → label → the same loop, for the eager variants: compiled code calls the same kernels."""
    runs: dict[str, dict[str, Callable]] = collections.defaultdict(dict)
    for variant in settings.torch_variants():
        if variant.compiled or variant.bfloat16:
            continue
        torch = torch_or_none()
        make = lambda b, h, w, c, variant=variant: variant.arrange(torch.randn(b, c, h, w))
        x, y = make(*shape.images), make(*shape.result)
        kernel = variant.arrange(torch.randn(shape.outputs, shape.inputs, 3, 3))
        calls = torch_calls(torch, kernel, shape.dilation)

        def loop(call: Callable, x=x, y=y) -> None:
            for _ in range(CALLS):
                kept = call(x, y)
            settings.finish(torch)
            del kept

        for name, call in calls.items():
            runs[name][variant.label] = lambda loop=loop, call=call: loop(call)
    return runs


def torch_calls(torch: Any, kernel: Any, dilation: int) -> dict[str, Callable]:
    """Name → (images, result's gradient) → what autograd computes, and nothing else."""
    pads = [dilation, dilation]

    def gradient(x: Any, y: Any, wanted: list[bool]) -> Any:
        found = torch.ops.aten.convolution_backward(
            y, x, kernel, None, [1, 1], pads, pads, False, [0, 0], 1, wanted
        )
        return next(each for each in found if each is not None)

    return {
        "forward": lambda x, y: torch.conv2d(x, kernel, None, 1, dilation, dilation),
        "images' gradient": lambda x, y: gradient(x, y, [True, False, False]),
        "kernel's gradient": lambda x, y: gradient(x, y, [False, True, False]),
    }


def _matrix_product(settings: Settings) -> list[dict[str, Any]]:
    """Square matrix products, ours in a loop and PyTorch's."""
    first, other = jax.random.normal(jax.random.key(0), (2, MATRIX, MATRIX))
    loop = repeated(jnp.matmul)
    runs = {"jax": lambda: jax.block_until_ready(loop(first, other))}
    if settings.torch_variants():
        torch = torch_or_none()
        theirs = torch.randn(2, MATRIX, MATRIX, device=settings.torch_device(torch))

        def products() -> None:
            for _ in range(CALLS):
                kept = theirs[0] @ theirs[1]
            settings.finish(torch)
            del kept

        runs["torch"] = products
    times = timing.alternate(runs, settings.repeats)
    flops = CALLS * 2 * float(MATRIX) ** 3
    what = f"matrix product, n = {MATRIX}"
    return ratios.rows(what, times, CALLS, "calls_per_s", dict.fromkeys(times, flops))
