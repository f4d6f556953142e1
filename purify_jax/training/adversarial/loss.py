"""The loss of purifier-aware adversarial training, its attack, and the probe that sees it collapse."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from purify_jax import attacks, losses, noise
from purify_jax.checks import (
    InputError,
    check_at_least,
    check_choice,
    check_count,
    check_epsilon,
    check_number,
)
from purify_jax.defense import Defense, undefended
from purify_jax.keys import image_keys, stream
from purify_jax.models.methods import (
    PUBLISHED,
    chosen_settings,
    model_purifier,
    with_one_restart,
)
from purify_jax.models.model import Model, check_same_images
from purify_jax.models.settings import NetworkLogits, score_fn
from purify_jax.pytrees import Pytree, jit, static
from purify_jax.training.augmentation import random_crop
from purify_jax.training.loop import Diverged, Watch
from purify_jax.training.score_model import EDMLoss, LogNormal
from purify_jax.training.step import TrainState, smoothed_cross_entropy, training_logits
from purify_jax.types import BOUNDS, Array, Json, Keys, Params
from purify_jax.types import Attack as AttackFn


class Collapsed(Diverged):
    """The accuracy under a longer attack broke down; what was saved before is as it was."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """The attack of every training step: ``num_steps`` steps from a random start in the ball.

    One step is FGSM (Wong et al. 2020, arXiv 2001.03994), of 1.25 ε by default; several are PGD, of 2.5 ε/T.
    With ``start_noise`` k > 0 it is N-FGSM (de Jorge et al. 2022, arXiv 2202.01181): x' = x + η + step, where η is
    uniform in the ball of k·ε and the steps, by default of ε in all, go up to ε from x + η, not from x. The
    paper takes k = 2 against collapse; docs/experiments.md has a classifier that it does not help.
    """

    epsilon: float
    norm: str = "linf"
    num_steps: int = 1
    step_size: float | None = None
    start_noise: float = 0.0

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon, attacks.norms.get(self.norm).name)
        check_count("attack_steps", self.num_steps)
        if self.step_size is not None:
            check_at_least("step_size", self.step_size, 0.0)
        check_at_least("start_noise", self.start_noise, 0.0)

    def default_step_size(self) -> float | None:
        """The step where none was given; None for PGD's own."""
        if self.start_noise:
            return self.epsilon / self.num_steps
        return 1.25 * self.epsilon if self.num_steps == 1 else None

    def on(self, defense: Defense) -> AttackFn:
        """As an attack by the exact gradient of a defense, one draw a step."""
        pgd = attacks.PGD(
            attacks.ExactGradient(defense),
            norm=self.norm,
            epsilon=self.epsilon,
            num_steps=self.num_steps,
            step_size=self.default_step_size() if self.step_size is None else self.step_size,
            random_start=not self.start_noise,
            best_iterate=False,
        )
        if not self.start_noise:
            return pgd
        norm, radius = attacks.norms.get(self.norm), self.start_noise * self.epsilon

        def noised(keys: Keys, images: Array, labels: Array) -> Array:
            moved = norm.random(stream(keys, "start"), images, radius)
            return pgd(keys, jnp.clip(images + moved, *BOUNDS), labels)

        return noised


@dataclasses.dataclass(frozen=True)
class Parts:
    """The structure of the defense that trains: hashable, as it is part of the program."""

    classifier: nn.Module
    role: str | None = None
    network: nn.Module | None = None
    image_shape: tuple[int, int, int] = (0, 0, 0)
    metadata: str = "{}"
    purification: tuple[tuple[str, object], ...] = ()

    @property
    def noise_scale(self) -> float:
        """The purifier's σ, in units of a pixel's range."""
        return {**PUBLISHED, **dict(self.purification)}["noise_scale"]

    def check_denoising(self) -> None:
        """Raises InputError if the purifier's model lacks what its denoising loss needs."""
        about = json.loads(self.metadata).get("training", {})
        if self.role not in ("energy", "score"):
            raise InputError(
                f"score_model: got a {self.role} to train, expected an energy or score model"
            )
        if getattr(self.network, "noise_conditional", False):
            for name in ("log_sigma_mean", "log_sigma_std"):
                check_number(f"score_model: metadata.training.{name}", about.get(name))
            return
        check_choice(
            "score_model: metadata.training.scale", about.get("scale"), sorted(noise.SCALES)
        )
        check_number("noise_scale, for the denoising loss", self.noise_scale, 0.0, open_low=True)

    def score_model(self, params: Params) -> Model:
        """The purifier's model, with these parameters."""
        assert self.role is not None
        assert self.network is not None
        about = json.loads(self.metadata)
        return Model(self.role, self.network, {"params": params}, self.image_shape, about)

    def defense(self, params: Mapping[str, Params], batch_stats: Params) -> Defense:
        """The defense with these parameters, by part, and the classifier's batch statistics."""
        stats = {"batch_stats": batch_stats} if batch_stats else {}
        logits_fn = NetworkLogits(self.classifier, {"params": params["classifier"], **stats})
        if self.role is None:
            return undefended(logits_fn)
        return Defense(
            model_purifier(self.score_model(params["purifier"]), **dict(self.purification)),
            logits_fn,
        )


class DefenseLoss(Pytree):
    """Cross-entropy on attacked images, through the whole defense, plus the denoising loss.

    frozen: the parameters, by part, that do not train.
    denoising_weight: of the denoising loss, while the purifier trains.
    label_smoothing: in [0, 1).
    parts: the structure of the defense.
    attack: of every step.
    crop_padding: random shifts by up to so many pixels; 0 for none.
    """

    frozen: Mapping[str, Params]
    _: KW_ONLY
    denoising_weight: float = 1.0
    label_smoothing: float = 0.0
    parts: Parts = static()
    attack: Attack = static()
    crop_padding: int = static(default=0)

    def __call__(
        self, params: Params, batch_stats: Params, keys: Keys, images: Array, labels: Array
    ) -> tuple[Array, tuple[dict, Params]]:
        if self.crop_padding:
            images = random_crop(stream(keys, "crop"), images, self.crop_padding)
        whole = {**self.frozen, **params}
        # The attack sees the defense as it will be deployed, with frozen batch statistics.
        defense = jax.lax.stop_gradient(self.parts.defense(whole, batch_stats))
        attacked = self.attack.on(defense)(stream(keys, "attack"), images, labels)
        attacked = jax.lax.stop_gradient(attacked)
        purifier = self.parts.defense(whole, batch_stats).purifier
        purified = purifier(stream(keys, "predict"), attacked)[0][0]
        network = self.parts.classifier
        logits, batch_stats = training_logits(network, whole["classifier"], batch_stats, purified)
        loss = smoothed_cross_entropy(logits, labels, self.label_smoothing)
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
        metrics = {"cross_entropy": loss, "attacked_accuracy": accuracy}
        if "purifier" in params:
            metrics["denoising"] = self.denoising(params["purifier"], keys, images)
            loss = loss + self.denoising_weight * metrics["denoising"]
        return loss, ({"loss": loss, **metrics}, batch_stats)

    def denoising(self, params: Params, keys: Keys, images: Array) -> Array:
        """EDM's loss of a network that is told σ; denoising score matching at the purifier's σ else."""
        model = self.parts.score_model(params)
        about = model.metadata["training"]
        if getattr(model.network, "noise_conditional", False):
            drawn = LogNormal(about["log_sigma_mean"], about["log_sigma_std"])
            loss = EDMLoss(drawn, network=model.network)
            return loss(params, {}, keys, images, None)[0]
        scale = noise.SCALES[about["scale"]]
        levels = jnp.full(1, self.parts.noise_scale, images.dtype)
        return losses.denoising_score_matching(score_fn(model), keys, images, levels, scale).mean()


def parts_of(classifier: Model, score_model: Model | None, purification: Json) -> Parts:
    """The structure of the two models' defense; InputError if they do not fit each other."""
    if score_model is None:
        return Parts(classifier.network)
    check_same_images(score_model, classifier)
    known = with_one_restart(chosen_settings(score_model, **purification))
    model_purifier(
        score_model, **known
    )  # refuses an unknown method or setting before anything compiles
    return Parts(
        classifier.network,
        score_model.role,
        score_model.network,
        score_model.image_shape,
        json.dumps(dict(score_model.metadata), sort_keys=True),
        tuple(sorted(known.items())),
    )


def watch(
    loss: DefenseLoss, probe: tuple[np.ndarray, np.ndarray], attack: Attack, key: Array
) -> Watch:
    """A function (step, state, metrics so far) → {"probe_accuracy": ...} that raises :class:`Collapsed`.

    The best accuracy so far is that of the metrics, so that a run that continues raises where one that was
    not interrupted does.
    """
    images, labels = jnp.asarray(probe[0]), jnp.asarray(probe[1])
    keys = image_keys(key, np.arange(len(images)))

    def probed(
        step: int, state: TrainState, history: Sequence[Mapping[str, float]]
    ) -> dict[str, float]:
        whole = {**loss.frozen, **state.params}
        defense = loss.parts.defense(whole, state.batch_stats)
        attacked = jit(attack.on(defense))(keys, images, labels)
        predicted = jit(defense)(stream(keys, "predict"), attacked).argmax(-1)
        found = float((predicted == labels).mean())
        best = max((known.get("probe_accuracy", 0.0) for known in history), default=0.0)
        if found < 0.5 * best:
            raise Collapsed(
                f"defense: accuracy under {attack.num_steps} steps fell from {best:.2f} to {found:.2f} at "
                f"step {step}, expected one that rises; more attack steps or a lower learning rate "
                "is the likely cure; what was saved before is as it was"
            )
        return {"probe_accuracy": found}

    return probed
