"""Flags and checks that the binaries share which put a model, a classifier and a data set together."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import flagging, number_flags
from purify_jax.checks import InputError

FLAGS = flags.FLAGS
#: Which models a binary requires beside the classifier.
_needs = {"score_model": False}
#: The purifier's flags that settings always name.
PURIFIER = ("num_steps", "num_restarts", "noise_scale")
MODEL_HELP = "A model that ships, a folder or hf:OWNER/NAME."


def define(
    images: int, batch_size: int, score_model_required: bool = False, own_code: bool = False
) -> None:
    """--score_model, --classifier, --dataset, --split, --images, --workdir, --seed, --batch_size, and the
    purifier's settings; with ``own_code`` --defense."""
    define_models()
    if own_code:
        define_defense()
    _needs["score_model"] = score_model_required
    flags.DEFINE_string("dataset", None, "Data set (default: the classifier's).")
    flags.DEFINE_string("split", "test", "Split, or a slice such as test[:512].")
    flags.DEFINE_string("workdir", None, "Folder for records and the report.", required=True)
    flags.DEFINE_integer("images", images, "Images, from the start of the split.")
    flags.DEFINE_integer("batch_size", batch_size, "Images side by side.")
    flags.DEFINE_integer("seed", 0, "Seed of all randomness.")
    define_purifier()
    flagging.define_image_size()
    flagging.define_data()


def define_purifier() -> None:
    """--method, --num_steps, --num_restarts, --noise_scale, --rate."""
    flags.DEFINE_string("method", None, "Purification method (default: the model's).")
    flags.DEFINE_integer("num_steps", None, "Purification steps (default: the model's).")
    flags.DEFINE_integer("num_restarts", None, "Purification restarts (default: the model's).")
    number_flags.define("noise_scale", None, "Purification noise (default: the model's).")
    number_flags.define("rate", None, "λ of ADP's steps (default: the model's).")


def define_models() -> None:
    """--model, or --score_model and --classifier."""
    flags.DEFINE_string("model", None, MODEL_HELP)
    flags.DEFINE_string("score_model", None, "Energy or score model (.safetensors).")
    flags.DEFINE_string("classifier", None, "Classifier model (.safetensors).")


def define_defense() -> None:
    """--defense, for what takes somebody's own code."""
    flags.DEFINE_string(
        "defense",
        None,
        "FILE.py:FUNCTION, your own code, which is run.",
    )


def own_code() -> str | None:
    """--defense, alone; None where it is not given, or where the command has no such flag."""
    place = FLAGS["defense"].value if "defense" in FLAGS else None
    others = (
        "model",
        "score_model",
        "classifier",
        "method",
        "num_steps",
        "num_restarts",
        "noise_scale",
        "rate",
    )
    if place and (beside := [name for name in others if FLAGS[name].value is not None]):
        raise InputError(f"defense: got --{beside[0]} beside it, expected one or the other")
    return place


def read_models(needs_score_model: bool) -> tuple[pj.models.Model | None, pj.models.Model]:
    """(score model or None, classifier) of the flags; InputError unless they fit together."""
    if FLAGS.model and (FLAGS.score_model or FLAGS.classifier):
        raise InputError(
            "model: got --score_model or --classifier beside it, expected one or the other"
        )
    if FLAGS.model:
        ready = pj.pretrained.load(FLAGS.model)
        return ready.score_model, ready.classifier
    for name, needed in (("classifier", True), ("score_model", needs_score_model)):
        if needed and not FLAGS[name].value:
            raise InputError(f"{name}: not given, expected --{name}=FILE, or --model=NAME")
    classifier = pj.load_model(FLAGS.classifier, ("classifier",))
    if not FLAGS.score_model:
        return None, classifier
    score_model = pj.load_model(FLAGS.score_model, pj.models.SCORE_ROLES)
    if score_model.image_shape != classifier.image_shape:
        raise InputError(
            f"score_model: made for images {score_model.image_shape}, expected the classifier's "
            f"{classifier.image_shape}"
        )
    return score_model, classifier


def define_ball() -> None:
    """--norm and --epsilon."""
    flags.DEFINE_enum("norm", "linf", ["linf", "l2", "l1"], "Norm of the perturbation.")
    number_flags.define(
        "epsilon", None, "Radius, where a pixel's range is 1: 8/255, say.", required=True
    )


def define_undefended() -> None:
    """--undefended, for what :func:`chosen_models` returns."""
    flags.DEFINE_bool("undefended", True, "Also the classifier without the purifier.")


class Loaded(NamedTuple):
    """score_model and defense are None without --score_model; undefended is the bare classifier.

    Of somebody's own code there are no models, and a bare classifier only if it stands apart.
    """

    score_model: pj.models.Model | None
    classifier: pj.models.Model | None
    undefended: pj.defense.Defense | None
    defense: pj.types.PredictFn | None
    dataset: pj.data.Dataset

    @property
    def models(self) -> dict[str, pj.types.PredictFn]:
        """What is evaluated, by name."""
        both = {"undefended": self.undefended, "defended": self.defense}
        return {name: model for name, model in both.items() if model is not None}


def chosen_models(loaded: Loaded) -> dict[str, pj.types.PredictFn]:
    """What is evaluated, by name, without the bare classifier under --noundefended."""
    if FLAGS.undefended:
        return loaded.models
    if loaded.defense is None:
        raise InputError(
            "undefended: got --noundefended without --score_model, expected a purifier"
        )
    return {"defended": loaded.defense}


def load() -> Loaded:
    """The models and the whole split that the flags name; InputError where they do not fit."""
    if place := own_code():
        return _load_own_code(place)
    score_model, classifier = read_models(_needs["score_model"])
    defense = make_defense(score_model, classifier)
    dataset = pj.models.match_classes(classifier, load_dataset(classifier, "classifier"))
    bare = pj.undefended(pj.models.logits_fn(classifier))
    return Loaded(score_model, classifier, bare, defense, dataset)


def _load_own_code(place: str) -> Loaded:
    if FLAGS.dataset is None:
        raise InputError("dataset: not given, expected --dataset beside --defense")
    dataset = pj.data.load_split(
        FLAGS.dataset, FLAGS.split, FLAGS.data_dir, image_size=FLAGS.image_size
    )
    given, own = read_own_code(
        place, dataset.batch(np.arange(min(4, len(dataset))))[0], dataset.num_classes
    )
    if not isinstance(own, pj.Defense):
        return Loaded(None, None, None, given, dataset)
    bare = pj.undefended(own.logits_fn)
    defended = pj.evaluation.suite_runs.is_defended(own)
    return Loaded(None, None, bare, own if defended else None, dataset)


def read_own_code(
    place: str, images: np.ndarray, num_classes: int | None = None
) -> tuple[pj.types.PredictFn, pj.defense.Attackable]:
    """(what --defense builds as a prediction, the same as attacks and judges take it)."""
    given = pj.bridges.defense_of(pj.bridges.built(place), images, num_classes)
    return given, pj.defense.attackable(given, images.shape[1:])


def load_dataset(model: pj.models.Model, called: str) -> pj.data.Dataset:
    """The whole split that the flags name, by default of the model's data; InputError where it does not fit."""
    name = FLAGS.dataset or model.metadata.get("dataset")
    if name is None:
        raise InputError(
            f"dataset: not given, and the {called}'s file names none, expected --dataset"
        )
    FLAGS.dataset = name  # results and work directories name it, whether it was given or not
    channels = model.image_shape[2] if model.image_shape[2] in (1, 3) else None
    dataset = pj.data.load_split(
        name, FLAGS.split, FLAGS.data_dir, image_size=FLAGS.image_size, channels=channels
    )
    if dataset.image_shape != tuple(model.image_shape):
        raise InputError(
            f"dataset: images are {dataset.image_shape}, expected the model's {model.image_shape}"
        )
    return dataset


def define_score_model() -> None:
    """--score_model or --model, for what needs no classifier."""
    flags.DEFINE_string("score_model", None, "Energy or score model (.safetensors).")
    flags.DEFINE_string("model", None, MODEL_HELP)


def read_score_model() -> pj.models.Model:
    """The score model of :func:`define_score_model`; InputError unless exactly one is named."""
    if bool(FLAGS.score_model) == bool(FLAGS.model):
        given = "both" if FLAGS.score_model else "neither"
        raise InputError(
            f"score_model, model: got {given}, expected --score_model=FILE or --model=NAME"
        )
    if FLAGS.model:
        return pj.pretrained.load(FLAGS.model).score_model
    return pj.load_model(FLAGS.score_model, pj.models.SCORE_ROLES)


def make_defense(
    score_model: pj.models.Model | None, classifier: pj.models.Model
) -> pj.defense.Defense | None:
    """The models put together with the purifier's flags; None without a score model."""
    if score_model is None:
        return None
    return pj.Defense(chosen_purifier(score_model), pj.models.logits_fn(classifier))


def chosen_purifier(score_model: pj.models.Model) -> pj.purifiers.Purifier:
    """The model's purifier with the settings that flags give; InputError for one that it does not use."""
    return pj.models.model_purifier(
        score_model,
        method=FLAGS.method,
        num_steps=FLAGS.num_steps,
        num_restarts=FLAGS.num_restarts,
        noise_scale=FLAGS.noise_scale,
        rate=FLAGS.rate,
    )


def key() -> pj.types.Array:
    """The key of --seed."""
    import jax  # not before flags are read: it takes a second

    return jax.random.key(FLAGS.seed)


def settings(*more: str) -> dict[str, Any]:
    """The flags that a run's results depend on, for its work directory and its results."""
    common = (
        "model",
        "score_model",
        "classifier",
        "dataset",
        "split",
        "images",
        "batch_size",
        "seed",
    )
    chosen = ("image_size", "method", "rate", "defense")
    given = [name for name in chosen if name in FLAGS and FLAGS[name].value is not None]
    return values(*common, *PURIFIER, *given, *more)


def values(*names: str) -> dict[str, Any]:
    """Flag → its value."""
    return {name: FLAGS[name].value for name in names}
