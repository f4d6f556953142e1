"""What a defense is and does, before any attack: about 30 passes on a few labelled images.

Most wrong robustness numbers have a cause that a few passes show: a layer in training mode, another input
range, probabilities in the place of logits, a gradient that is missing or not the derivative, noise that a whole
batch shares.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.bridges import inspection
from purify_jax.bridges.from_torch import TorchDefense, bridged_parts, defense_from_torch
from purify_jax.bridges.inspection import modes
from purify_jax.bridges.torch_outputs import kind_of
from purify_jax.bridges.traits import DRAWS, same
from purify_jax.checks import InputError, check_images, check_labels
from purify_jax.defense import Defense
from purify_jax.devices.memory import compiled_bytes
from purify_jax.evaluation.probes.findings import Examination, expected_range
from purify_jax.keys import draw_each, image_keys, signs, stream, stream_key
from purify_jax.losses import margin
from purify_jax.purifiers.filters import identity
from purify_jax.pytrees import Pytree, as_pytree, described, jit, static
from purify_jax.types import Array, Keys, PredictFn

#: Images that are looked at, at most.
IMAGES = 32
#: Step sizes of the slopes, in units of a pixel's range.
STEPS = (1e-3, 4e-3)
#: Shares of images above which something is said of the defense.
FEW, MUCH = 0.05, 0.25


class LogProbabilities(Pytree):
    """A function of JAX that answers otherwise, as (keys, images) → log-probabilities.

    output: what it answers: "logits" or "probabilities".
    """

    function: PredictFn
    output: str = static()

    def __call__(self, keys: Keys, images: Array) -> Array:
        found = self.function(keys, images)
        if self.output == "probabilities":
            found = jnp.log(jnp.maximum(found, jnp.finfo(found.dtype).tiny))
        return jax.nn.log_softmax(found)


class MarginGradient(Pytree):
    """(keys, images, labels) → (gradient of the margin, log-probabilities) of one draw."""

    defense: PredictFn

    def __call__(self, keys: Keys, images: Array, labels: Array) -> tuple[Array, Array]:
        def total(x: Array) -> tuple[Array, Array]:
            found = self.defense(keys, x)
            return jnp.sum(margin(found, labels)), found

        return jax.grad(total, has_aux=True)(images)


def examine(
    defense: object, images: np.ndarray, labels: np.ndarray, *, seed: int = 0, **declared: Any
) -> Examination:
    """Looks at a defense before it is attacked: randomness, output, modes, state, gradient, range, cost.

    Args:
      defense: (keys, images) → log-probabilities (or logits, or probabilities), a
        :class:`~purify_jax.defense.Defense`, what :func:`~purify_jax.bridges.defense_from_torch` returns, or a
        ``torch.nn.Module``. Give other PyTorch code to ``defense_from_torch`` first.
      images: a few images ``[batch, h, w, c]`` in [0, 1]; the first 32 are used.
      labels: their classes ``[batch]``.
      seed: of the draws.
      declared: keywords of ``defense_from_torch`` for a module.

    Raises InputError for bad images or labels, and for a module as ``defense_from_torch``.
    """
    check_images(images)
    images, labels = np.asarray(images, np.float32)[:IMAGES], np.asarray(labels)[:IMAGES]
    if len(labels) != len(images) or len(images) == 0:
        raise InputError(f"labels: got {len(labels)} for {len(images)} images, expected one each")
    if declared or not callable(defense) or _is_module(defense):
        defense = defense_from_torch(defense, images=images, **declared)
    return _Examiner(defense, images, labels, jax.random.key(seed)).examination()


def _is_module(value: object) -> bool:
    # Without importing PyTorch where nothing of it is used.
    names = [f"{c.__module__}.{c.__name__}" for c in type(value).__mro__]
    return "torch.nn.modules.module.Module" in names


class _Compiled:
    """A function compiled for one shape, with its bytes and its time."""

    def __init__(self, function: Callable, *arguments: object):
        self.function = as_pytree(function)
        self.program = jit(function).lower(*arguments).compile()
        self.megabytes = compiled_bytes(self.program) / 1e6

    def __call__(self, *arguments: object) -> Any:
        return jax.tree.map(np.asarray, self.program(self.function, *arguments))

    def milliseconds(self, *arguments: object) -> float:
        """The faster of two runs."""
        times = []
        for _ in range(2):
            start = time.perf_counter()
            self(*arguments)
            times.append(1e3 * (time.perf_counter() - start))
        return min(times)


class _Examiner:
    """The passes of an examination, all of one batch of images, so that two programs are compiled."""

    def __init__(self, defense: Any, images: np.ndarray, labels: np.ndarray, key: Array):
        count = len(images)
        self.images, self.labels, self.count = images, labels, count
        draw = lambda i: image_keys(stream_key(key, f"examination {i}"), np.arange(count))
        self.keys, self.other_keys, self.directions = draw(0), draw(1), stream(draw(2), "direction")
        self.parts = [part.measured(images) for part in bridged_parts(defense)]
        self.whole = isinstance(defense, TorchDefense)
        self.given = self.parts[0] if self.whole else defense
        self.predict = _Compiled(self.given, self.keys, images)

    def examination(self) -> Examination:
        given, keys, images, labels = self.given, self.keys, self.images, self.labels
        answers = self.predict(keys, images)
        if answers.ndim != 2 or len(answers) != self.count:
            raise InputError(
                f"defense: returned shape {answers.shape} for {self.count} images, expected [batch, classes]"
            )
        check_labels(labels, answers.shape[1])
        output = self.output = kind_of(answers)
        defense = given if output == "log_probabilities" else LogProbabilities(given, output=output)
        gradient = _Compiled(MarginGradient(defense), keys, images, labels)
        right = {
            name: self.predict(keys, change(images)).argmax(-1) == labels
            for name, change in (
                ("x", lambda x: x),
                ("255 x", lambda x: 255 * x),
                ("2 x - 1", lambda x: 2 * x - 1),
            )
        }
        accuracy = {name: float(np.mean(each)) for name, each in right.items()}
        random = self._randomness(answers)
        torch = self._torch(accuracy, random["repeatable"])
        kind, wrong = self._gradient(gradient, random["repeatable"], random["independent"])
        log_probs = as_log_probs(answers, output)
        forward, backward = torch.pop("megabytes", (self.predict.megabytes, gradient.megabytes))
        return Examination(
            defense=defense,
            separate=isinstance(given, Defense) and given.purifier is not identity,
            output=self.parts[0].traits.output if self.whole else output,
            num_classes=answers.shape[1],
            accuracy=accuracy,
            expects=expected_range(right),
            saturated=float(np.mean(log_probs.max(-1) > -1e-6)),
            gradient=kind,
            wrong=wrong,
            forward_ms=self.predict.milliseconds(keys, images) / self.count,
            backward_ms=gradient.milliseconds(keys, images, labels) / self.count,
            forward_mb=forward / self.count,
            backward_mb=backward / self.count,
            **random,
            **torch,
        )

    def _randomness(self, answers: np.ndarray) -> dict[str, Any]:
        traits = [part.traits for part in self.parts]
        again = self.predict(self.keys, self.images)
        other = self.predict(self.other_keys, self.images)
        # The first and the last image with their keys, beside other keys; the first beside darker images.
        first = jnp.concatenate([self.keys[:1], self.other_keys[1:]])
        last = jnp.concatenate([self.other_keys[:-1], self.keys[-1:]])
        shared = not same(self.predict(first, self.images)[:1], answers[:1])
        shared |= not same(self.predict(last, self.images)[-1:], answers[-1:])
        darker = np.concatenate([self.images[:1], 0.5 * self.images[1:]])
        independent = same(self.predict(self.keys, darker)[:1], answers[:1])
        draws = "none" if same(other, answers) else "per call" if shared else "per image"
        if traits and any(t.draws != "none" for t in traits):  # one seed for the keys of a call
            draws = max((t.draws for t in traits), key=DRAWS.index)
        return {
            "draws": draws,
            "generators": tuple(dict.fromkeys(g for t in traits for g in t.generators)),
            "replayed": any(t.replayed for t in traits),
            "repeatable": same(again, answers) and all(t.repeatable for t in traits),
            "independent": all(t.independent for t in traits) if traits else independent,
            "stateful": any(t.stateful for t in traits),
        }

    def _torch(self, accuracy: dict[str, float], repeatable: bool) -> dict[str, Any]:
        """Modes and memory of PyTorch modules; adds the accuracy in evaluation mode."""
        found: dict[str, Any] = {
            "code": described(self.given),
            "training": {},
            "eval_changes": False,
        }
        nchw = np.ascontiguousarray(self.images.transpose(0, 3, 1, 2))
        for part in self.parts:
            classifier = part.bridge.classifier
            if classifier and not self.whole and len(self.parts) > 1:
                continue  # what it is given is what the purifier returns
            calls, plan = part.bridge.calls, part.traits.plan
            both, as_given = modes(calls, plan, nchw)
            found["training"].update(both.training)
            if both.changed is not None and repeatable and not same(both.changed, as_given):
                found["eval_changes"] = True
                if classifier:
                    right = both.changed.argmax(-1) == self.labels
                    accuracy["x, eval()"] = float(np.mean(right))
            if self.whole:
                found["code"] = inspection.described(calls)
                found["megabytes"] = inspection.megabytes(calls, plan, nchw)
        return found

    def _gradient(
        self, gradient: _Compiled, repeatable: bool, independent: bool
    ) -> tuple[str, float]:
        """(what it is, share of images whose slopes contradict it)."""
        # Inside the range, where clipping does not halve a slope.
        images = np.clip(self.images, 2 * STEPS[-1], 1 - 2 * STEPS[-1])
        grads, log_probs = gradient(self.keys, images, self.labels)
        if any(part.traits.gradient == "missing" for part in self.parts):
            return "missing", 1.0
        if np.mean(~np.isfinite(grads).all((1, 2, 3))) > FEW:
            return "not finite", 1.0
        if np.mean((grads == 0).all((1, 2, 3))) > MUCH:
            return "zero", 1.0
        if not repeatable:
            return "unknown", 0.0
        # Where images depend on each other, the slope of the whole batch alone is that of the gradient.
        total = (lambda x: x) if independent else (lambda x: np.sum(x, keepdims=True))
        random = np.asarray(_signs(self.directions, images))
        signs = np.where(grads == 0, random, np.sign(grads)).astype(np.float32)
        size = np.sqrt(total((grads.astype(np.float64) ** 2).sum((1, 2, 3))))
        precision = {"float16": 1e-3, "bfloat16": 8e-3}.get(self._dtype(), 1.2e-7)
        finite = np.where(np.isfinite(log_probs), log_probs, 0)
        wrong = np.ones(len(size), bool)
        for step in STEPS:
            rounding = total(0.02 + 4 * precision * np.abs(finite).max(-1) / step)
            contradicted = np.zeros(len(size), bool)
            # Along the signs a slope is largest; along random ones it also has what a stopped branch hides.
            for direction, share, of_size in ((signs, 0.5, 0.0), (random, 0.1, 0.3)):
                ends = [total(self._margin(images + s * step * direction)) for s in (1, -1)]
                measured = (ends[0] - ends[1]) / (2 * step)
                claimed = total((grads * direction).sum((1, 2, 3)))
                larger = np.maximum(np.abs(measured), np.abs(claimed))
                allowed = np.maximum(share * larger, of_size * size) + rounding
                contradicted |= np.abs(measured - claimed) > allowed
            wrong &= contradicted
        wrong_share = float(wrong.mean())
        return "not the derivative" if wrong_share > MUCH else "derivative", wrong_share

    def _dtype(self) -> str:
        return self.parts[0].traits.precision if self.parts else "float32"

    def _margin(self, images: np.ndarray) -> np.ndarray:
        found = as_log_probs(self.predict(self.keys, images), self.output)
        return np.asarray(margin(jnp.asarray(found), jnp.asarray(self.labels)), np.float64)


def as_log_probs(answers: np.ndarray, output: str) -> np.ndarray:
    """Answers of a kind as log-probabilities."""
    if output == "probabilities":
        return np.log(np.maximum(answers, np.finfo(answers.dtype).tiny))
    return np.asarray(jax.nn.log_softmax(answers))


def _signs(keys: Keys, images: np.ndarray) -> Array:
    return draw_each(lambda key: signs(key, images.shape[1:], jnp.float32), keys)
