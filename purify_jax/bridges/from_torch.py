"""A defense, a purifier or a classifier in PyTorch, as functions of JAX with draws for keys and gradients."""

import dataclasses
import warnings
from dataclasses import KW_ONLY
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.bridges.inspection import fingerprint
from purify_jax.bridges.jax_calls import JaxCalls
from purify_jax.bridges.torch_calls import Counts, TorchCalls
from purify_jax.bridges.torch_outputs import KINDS
from purify_jax.bridges.traits import DRAWS, Traits, measure
from purify_jax.checks import InputError, check_choice, check_count, check_images
from purify_jax.keys import fold_keys
from purify_jax.pytrees import Partial, Pytree, static
from purify_jax.types import Array, Keys, PurifyInfo


class Bridge:
    """One module behind its functions of JAX: what was declared, and what was measured for each image shape."""

    def __init__(
        self,
        module: object,
        classifier: bool,
        num_classes: int | None = None,
        output: str | None = None,
        draws: str | None = None,
        mode: str | None = None,
    ):
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise InputError(
                "bridges: PyTorch is not installed, expected the torch extra"
            ) from error
        if num_classes is not None:
            check_count("num_classes", num_classes)
        for name, value, known in (
            ("output", output, KINDS), ("draws", draws, DRAWS), ("mode", mode, ("train", "eval")),
        ):  # fmt: skip
            if value is not None:
                check_choice(name, value, known)
        self.calls = TorchCalls(module, mode)
        self.classifier, self.num_classes = classifier, num_classes
        self.output, self.draws = output, draws
        self._known: dict[tuple[int, ...], tuple[Traits, JaxCalls]] = {}

    def __repr__(self) -> str:
        return repr(self.calls)

    def fingerprint(self) -> tuple[str, bool]:
        """(what identifies the module and its settings in records, whether it holds weights)."""
        digest, has_weights = fingerprint(self.calls)
        settings = [self.calls.mode, self.num_classes, self.output, self.draws]
        return f"{digest} {settings}", has_weights

    def measure(self, images: np.ndarray) -> Traits:
        """The traits for images ``[batch, h, w, c]`` of a shape, measured once."""
        shape = images.shape[1:]
        if shape not in self._known:
            nchw = np.ascontiguousarray(images[:8].transpose(0, 3, 1, 2))
            traits = self._declared(measure(self.calls, nchw, self.classifier))
            self.calls.counts = Counts()
            self._known[shape] = traits, JaxCalls(self.calls, traits.plan, nchw.shape[1:])
        return self._known[shape][0]

    def functions(self, shape: tuple[int, ...]) -> tuple[Traits, JaxCalls]:
        """(traits, calls) for images ``[h, w, c]``, measured on random ones if they are not known yet."""
        if shape not in self._known:
            self.measure(np.random.default_rng(0).uniform(size=(4, *shape)).astype(np.float32))
        return self._known[shape]

    def _declared(self, traits: Traits) -> Traits:
        if self.num_classes not in (None, traits.answer_shape[0]) and self.classifier:
            raise InputError(
                f"module: returned {traits.answer_shape[0]} numbers per image, expected num_classes = {self.num_classes}"
            )
        if self.output not in (None, traits.output):
            line = f"output: declared {self.output}, measured {traits.output}"
            if self.output != "logits":
                raise InputError(f"{line}, expected rows that sum to 1")
            warnings.warn(
                f"{line}: attacks follow the gradients of what was declared", stacklevel=2
            )
            traits = traits._replace(output=self.output)
        if self.draws not in (None, traits.draws):
            if self.draws == "none":
                raise InputError(
                    f"draws: declared none, measured {traits.draws}, expected the latter"
                )
            traits = traits._replace(draws=self.draws)
        return traits


class _FromTorch(Pytree):
    """What the three functions share; see :func:`defense_from_torch`.

    bridge: the module, held as it is.
    traits: what was measured on the images that were given, else None.
    """

    bridge: Bridge = static(kw_only=False)
    _: KW_ONLY
    traits: Traits | None = static(default=None)

    @property
    def module(self) -> Any:
        """What was given."""
        return self.bridge.calls.module

    @property
    def is_deterministic(self) -> bool:
        """Whether the module draws nothing, as measured on the images that were given; without any, False."""
        return self.traits is not None and not self.traits.plan.random

    @property
    def counts(self) -> Counts:
        """Calls of the module so far, without those that measured it."""
        return self.bridge.calls.counts

    def measured(self, images: np.ndarray) -> Self:
        """The same with the traits that are measured on a few images ``[batch, h, w, c]`` in [0, 1]."""
        check_images(images)
        return self.replace(traits=self.bridge.measure(np.asarray(images, np.float32)))

    def _answers(self, keys: Keys, images: Array) -> Array:
        """``[batch, classes]`` or images NCHW."""
        if jax.dtypes.issubdtype(keys.dtype, jax.dtypes.prng_key):
            keys = jax.random.key_data(keys)
        _, calls = self.bridge.functions(tuple(images.shape[1:]))
        nchw = jnp.asarray(images, jnp.float32).transpose(0, 3, 1, 2)
        return calls.function(keys.reshape(keys.shape[0], -1), nchw)


Bridged = TypeVar("Bridged", bound=_FromTorch)


class TorchDefense(_FromTorch):
    """(keys ``[batch]``, images) → log-probabilities ``[batch, classes]``, see :func:`defense_from_torch`."""

    def __call__(self, keys: Keys, images: Array) -> Array:
        check_images(images)
        return jax.nn.log_softmax(self._answers(keys, images))


class TorchPurifier(_FromTorch):
    """(keys ``[batch]``, images) → (purified ``[restarts, batch, h, w, c]``, info), see :func:`purifier_from_torch`.

    num_restarts: draws for each image, ≥ 1.
    """

    _: KW_ONLY
    num_restarts: int = static(default=1)
    score_fn = None

    def __post_init__(self) -> None:
        check_count("num_restarts", self.num_restarts)

    def __call__(self, keys: Keys, images: Array) -> tuple[Array, PurifyInfo]:
        check_images(images)
        restart = lambda r: self._answers(fold_keys(keys, r), images)
        found = jax.vmap(restart)(jnp.arange(self.num_restarts))
        none = jnp.zeros((0, *found.shape[:2]), images.dtype)
        info = PurifyInfo(none, none, jnp.zeros(found.shape[:2], jnp.int32))
        return found.transpose(0, 1, 3, 4, 2), info


class TorchLogits(_FromTorch):
    """images → logits ``[batch, classes]``, see :func:`logits_from_torch`."""

    def __call__(self, images: Array) -> Array:
        traits, _ = self.bridge.functions(tuple(jnp.shape(images)[1:]))
        if traits.plan.random:
            raise InputError(
                f"module: its answers are random ({', '.join(traits.generators) or 'by an unknown generator'}), "
                'expected a classifier that draws nothing: use defense_from_torch, or mode="eval"'
            )
        return self._answers(jnp.zeros((images.shape[0], 2), jnp.uint32), images)


def defense_from_torch(
    module: object,
    num_classes: int | None = None,
    *,
    images: np.ndarray | None = None,
    output: str | None = None,
    draws: str | None = None,
    mode: str | None = None,
) -> TorchDefense:
    """A whole defense in PyTorch as (keys, images NHWC) → log-probabilities ``[batch, classes]``.

    PyTorch computes values and vector-Jacobian products, on the device of the module's parameters. JAX sees
    a function with a first derivative, so exact attacks with EOT run. It is not differentiable twice and
    not exportable.

    **Randomness.** One seed is derived from all keys of a call. It seeds PyTorch's, NumPy's and Python's
    global generators and those that are found in the module; all are restored after the call. So the same
    keys give the same draw, forwards and backwards, and the caller's random numbers stay as they are. An
    image's draw depends on the other keys of its batch: with another batch size a random module has other
    draws, of the same distribution. Samples of EOT are one call with more images, unless one draw serves a
    whole call or images of a batch depend on each other: then each sample is one call.

    **What it leaves alone.** The modes (training, evaluation), also where ``mode`` asks for another one
    during calls; buffers that calls change; ``requires_grad`` of parameters.

    **What is measured** in about ten small calls: the kind of the output, the randomness, state,
    dependence on the batch, the gradient. See :class:`~purify_jax.bridges.Traits`, and its ``promises``
    for what the randomness allows to promise.

    Args:
      module: a ``torch.nn.Module``, a function, or an object with a method ``sample``. It takes images NCHW in
        [0, 1], in the type of its parameters, and returns logits, log-probabilities or probabilities
        ``[batch, classes]``: as a tensor, first in a tuple, or as ``.logits`` (and the like) of an object
        or a dictionary.
      num_classes: how many classes are expected; measured by default.
      images: a few images ``[batch, h, w, c]`` in [0, 1] to measure on, at once. By default random images of
        the shape of the first call are used, and the module counts as random for the suites.
      output: "logits", "log_probabilities" or "probabilities", if not as measured.
      draws: "per image" or "per call", if not as measured.
      mode: "train" or "eval" during calls; as given by default.

    Raises InputError for what is no function, an output of another shape or number of classes, and for a
    declaration that measurements contradict (a warning for "logits").
    """
    bridge = Bridge(module, True, num_classes, output, draws, mode)
    return _with_images(TorchDefense(bridge), images)


def purifier_from_torch(
    module: object,
    *,
    num_restarts: int = 1,
    images: np.ndarray | None = None,
    draws: str | None = None,
    mode: str | None = None,
) -> TorchPurifier:
    """A purifier in PyTorch, images NCHW → images NCHW, as :class:`~purify_jax.purifiers.Purifier`.

    The size of the images may change. ``num_restarts`` purifications of each image, with draws of their own,
    are made. The rest is as of :func:`defense_from_torch`; a purifier may also return images as
    ``.images`` or ``.sample``.
    """
    bridge = Bridge(module, False, draws=draws, mode=mode)
    return _with_images(TorchPurifier(bridge, num_restarts=num_restarts), images)


def logits_from_torch(
    module: object,
    num_classes: int | None = None,
    *,
    images: np.ndarray | None = None,
    output: str | None = None,
    mode: str | None = None,
) -> TorchLogits:
    """A classifier in PyTorch as images NHWC → logits ``[batch, classes]``.

    Where the module returns probabilities, the logits are their logarithms. A classifier has no keys, so one
    that draws random numbers is refused in the first call. The rest is as of :func:`defense_from_torch`.
    """
    bridge = Bridge(module, True, num_classes, output, mode=mode)
    return _with_images(TorchLogits(bridge), images)


def bridged_parts(function: object) -> list[Any]:
    """The functions that were made from PyTorch in a function, or in a defense and what it is made of."""
    if isinstance(function, _FromTorch):
        return [function]
    if isinstance(function, Partial):
        held = [function.func, *function.args, *function.keywords.values()]
    else:
        is_tree = isinstance(function, Pytree)
        held = [getattr(function, f.name) for f in dataclasses.fields(function)] if is_tree else []  # type: ignore
    return [part for each in held for part in bridged_parts(each)]


def _with_images(function: Bridged, images: np.ndarray | None) -> Bridged:
    return function if images is None else function.measured(images)
