"""Convolution whose derivatives are fast on a CPU too, also inside ``lax.scan``.

XLA's CPU backend runs a plain forward convolution well. Inside a loop (a ``scan`` over training or
purification steps) it falls back to naive code for the two convolutions that differentiation makes. With
jaxlib 0.10.2, two training steps of the CIFAR-10 classifier (32 images) take 4.5 s of CPU time with
``lax.conv_general_dilated``, 0.24 s with this module; forward passes take the same.
``docs/performance_notes.md`` has more. So convolution is a primitive here, because ``jax.custom_vjp`` cannot be
differentiated forwards. It is bilinear like the original, with transposes in forms that stay fast:

- with respect to the images: a plain stride-1 convolution with the turned kernel; for larger strides
  one for each phase of the stride, with the taps that reach it;
- with respect to the kernel: on a CPU again a plain convolution, in which images and channels have
  changed places, or, where that is too small, a matrix product of shifted images and cotangents;
  XLA's own convolution elsewhere.

It differentiates any number of times, forwards and backwards, and batches under ``vmap``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from purify_jax.types import Array

_NUMBERS = ("NHWC", "HWIO", "NHWC")
Pair = tuple[int, int]
Pairs = tuple[Pair, Pair]

#: Fewer images than this, summed over as if they were channels, are too few for a convolution to be fast.
_FEW_IMAGES = 8


def convolve(
    images: Array,
    kernel: Array,
    strides: Pair = (1, 1),
    padding: str | Pairs = "SAME",
    dilation: Pair = (1, 1),
) -> Array:
    """2-D cross-correlation: images ``[b, h, w, in]``, kernel ``[kh, kw, in, out]``."""
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel.shape[:2], strict=True)]
    given = (
        lax.padtype_to_pads(images.shape[1:3], reach, strides, padding)
        if isinstance(padding, str)
        else padding
    )
    pairs = tuple((int(low), int(high)) for low, high in given)
    images, kernel = _varying_alike(images, kernel)
    return _conv_p.bind(
        images, kernel, strides=tuple(strides), padding=pairs, dilation=tuple(dilation)
    )


def _varying_alike(images: Array, kernel: Array) -> tuple[Array, Array]:
    """Inside a ``shard_map`` of the user's, both as varying over the same devices, as JAX's own operations do.

    The kernel's gradient is then summed over those devices.
    """
    axes = [_varies_over(jax.typeof(x)) for x in (images, kernel)]
    if axes[0] == axes[1]:
        return images, kernel
    missing = [tuple((axes[0] | axes[1]) - own) for own in axes]
    pcast = getattr(lax, "pcast", None)
    vary: Callable = partial(pcast, to="varying") if pcast else getattr(lax, "pvary")  # noqa: B009
    return vary(images, missing[0]), vary(kernel, missing[1])


def _varies_over(aval: object) -> frozenset:
    """The axes of a ``shard_map`` that a value varies over; JAX 0.10 keeps them elsewhere than earlier ones."""
    manual = getattr(aval, "manual_axis_type", None)
    return manual.varying if manual is not None else getattr(aval, "vma", frozenset())


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Pair,
    padding: str | Pairs,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Pair | None = None,
    feature_group_count: int = 1,
    **_: object,
) -> Array:
    """:func:`convolve` with the signature that ``linen.Conv(conv_general_dilated=...)`` asks for."""
    if feature_group_count != 1 or any(d != 1 for d in lhs_dilation or ()):
        raise NotImplementedError(
            f"feature_group_count, lhs_dilation: got {feature_group_count}, {lhs_dilation}, "
            "expected 1 and no dilation of the images (no grouped or transposed convolutions)"
        )
    return convolve(lhs, rhs, window_strides, padding, rhs_dilation or (1, 1))


def _native(
    images: Array, kernel: Array, *, strides: Pair, padding: Pairs, dilation: Pair
) -> Array:
    return lax.conv_general_dilated(
        images, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=_NUMBERS
    )


def _images_transpose(
    cotangent: Array,
    images: ad.UndefinedPrimal,
    kernel: Array,
    *,
    strides: Pair,
    padding: Pairs,
    dilation: Pair,
) -> Array:
    sizes = images.aval.shape[1:3]
    strided = tuple(strides) != (1, 1)
    phases = tuple(dilation) == (1, 1) and min(low for low, _ in padding) >= 0
    if strided and phases and _known(cotangent.shape[1:3]):
        return _images_transpose_in_phases(cotangent, sizes, kernel, strides, padding)
    spread, pairs = [(0, 0, 0)], []
    for axis in range(2):
        reach = dilation[axis] * (kernel.shape[axis] - 1)
        low, high = padding[axis]
        unused = (sizes[axis] + low + high - reach - 1) % strides[axis]
        spread.append((0, unused, strides[axis] - 1))
        pairs.append((reach - low, reach - high))
    if strided:
        zero = jnp.zeros((), cotangent.dtype)
        cotangent = lax.pad(cotangent, zero, [*spread, (0, 0, 0)])
    return convolve(cotangent, _turned(kernel), (1, 1), tuple(pairs), dilation)  # type: ignore[arg-type]


def _images_transpose_in_phases(
    cotangent: Array, sizes: Sequence[int], kernel: Array, strides: Pair, padding: Pairs
) -> Array:
    """The same for strides s > 1, without multiplying by the zeros between the strides.

    Along an axis, pixel n = s m + a - low has dx[n] = Σ_q k[s q + a] y[m - q]: for each phase a a plain
    convolution with every s-th tap.
    """
    counts = [-(-(n + low) // s) for n, (low, _), s in zip(sizes, padding, strides, strict=True)]
    rows = []
    for first in range(strides[0]):
        row = []
        for second in range(strides[1]):
            taps = kernel[first :: strides[0], second :: strides[1]]
            shape = (cotangent.shape[0], *counts, kernel.shape[2])
            if 0 in taps.shape[:2]:
                row.append(jnp.zeros(shape, cotangent.dtype))
                continue
            given, pairs = cotangent, []
            for axis, count in enumerate(counts):
                given = lax.slice_in_dim(given, 0, min(count, given.shape[1 + axis]), axis=1 + axis)
                pairs.append((taps.shape[axis] - 1, count - given.shape[1 + axis]))
            row.append(convolve(given, _turned(taps), (1, 1), tuple(pairs)))  # type: ignore[arg-type]
        rows.append(jnp.stack(row, axis=3))
    phases = jnp.stack(rows, axis=2)  # [b, m, s, m', s', c]
    whole = phases.reshape(
        phases.shape[0], counts[0] * strides[0], counts[1] * strides[1], phases.shape[-1]
    )
    (top, _), (left, _) = padding
    return whole[:, top : top + sizes[0], left : left + sizes[1]]


def _turned(kernel: Array) -> Array:
    """The kernel of the transposed convolution: turned by 180 degrees, inputs and outputs exchanged."""
    return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


def _known(shape: Sequence[object]) -> bool:
    """Whether the sizes are numbers: in a program exported for any size they are not."""
    return all(isinstance(n, int) for n in shape)


def _kernel_transpose(
    cotangent: Array,
    images: Array,
    kernel: ad.UndefinedPrimal,
    *,
    strides: Pair,
    padding: Pairs,
    dilation: Pair,
) -> Array:
    shape, dtype = kernel.aval.shape, kernel.aval.dtype

    def by_products(images: Array, cotangent: Array) -> Array:
        pads = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
        padded = lax.pad(images, jnp.zeros((), images.dtype), pads)
        height, width, out = cotangent.shape[1:]
        taps = []
        for i in range(shape[0]):
            for j in range(shape[1]):
                top, left = i * dilation[0], j * dilation[1]
                stop = (top + (height - 1) * strides[0] + 1, left + (width - 1) * strides[1] + 1)
                taps.append(padded[:, top : stop[0] : strides[0], left : stop[1] : strides[1]])
        wide = jnp.concatenate(taps, axis=-1).reshape(-1, len(taps) * shape[2])
        return jnp.matmul(wide.T, cotangent.reshape(-1, out)).reshape(shape).astype(dtype)

    def by_plain_convolution(images: Array, cotangent: Array) -> Array:
        # dk[i, j, c, o] = Σ_{b, h, w} x[b, h s + i d, w s + j d, c] y[b, h, w, o]: images in the place of
        # channels, the cotangent in the kernel's; strides and dilation change places too.
        pairs = []
        for axis in (1, 2):
            low, high = padding[axis - 1]
            last = strides[axis - 1] * (cotangent.shape[axis] - 1)
            read = last + dilation[axis - 1] * (shape[axis - 1] - 1) + 1
            unread = images.shape[axis] + low + high - read
            images = lax.slice_in_dim(
                images, 0, images.shape[axis] - max(unread - high, 0), axis=axis
            )
            pairs.append((low, max(high - unread, 0)))
        wide, window = images.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)
        found = convolve(wide, window, dilation, tuple(pairs), strides)  # type: ignore[arg-type]
        return found.transpose(1, 2, 0, 3).astype(dtype)

    def by_convolution(images: Array, cotangent: Array) -> Array:
        conv = lambda k: _native(images, k, strides=strides, padding=padding, dilation=dilation)
        like = partial(jnp.zeros_like, dtype=dtype, shape=shape)  # it varies as the cotangent does
        (gradient,) = jax.linear_transpose(conv, jax.eval_shape(like, cotangent))(cotangent)
        return gradient

    # The number of images is not known in a program exported for batches of any size.
    many = _known(images.shape[:1]) and images.shape[0] >= _FEW_IMAGES
    plain = many and shape[:2] != (1, 1)
    cpu = by_plain_convolution if plain else by_products
    return lax.platform_dependent(images, cotangent, cpu=cpu, default=by_convolution)


def _abstract(
    images: jax.core.ShapedArray, kernel: jax.core.ShapedArray, **params: Any
) -> jax.core.ShapedArray:
    given = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (images, kernel)]
    out = jax.eval_shape(partial(_native, **params), *given)
    # Over which axes of a shard_map it varies is that of the images, see :func:`convolve`.
    return images.update(shape=out.shape, dtype=out.dtype, weak_type=False)


def _batched(arrays: Sequence[Array], axes: Sequence[Any], **params: Any) -> tuple[Array, int]:
    images, kernel = arrays
    images_axis, kernel_axis = axes
    if kernel_axis is None:
        images = jnp.moveaxis(images, images_axis, 0)
        merged = images.reshape((-1, *images.shape[2:]))
        out = _conv_p.bind(merged, kernel, **params)
        return out.reshape((*images.shape[:2], *out.shape[1:])), 0
    native = lambda i, k: _native(i, k, **params)
    return jax.vmap(native, in_axes=tuple(axes))(images, kernel), 0


_conv_p = Primitive("purify_conv")
_conv_p.def_impl(jax.jit(_native, static_argnames=("strides", "padding", "dilation")))
_conv_p.def_abstract_eval(_abstract)
ad.defbilinear(_conv_p, _images_transpose, _kernel_transpose)
batching.primitive_batchers[_conv_p] = _batched
mlir.register_lowering(_conv_p, mlir.lower_fun(_native, multiple_results=False))

#: ``linen.Conv`` on top of :func:`convolve`; the parameters are those of ``linen.Conv``.
Conv = partial(nn.Conv, conv_general_dilated=conv_general_dilated)
