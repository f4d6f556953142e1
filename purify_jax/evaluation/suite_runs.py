"""A whole suite against a defense and against models beside it: records, probes, red flags."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax import costs
from purify_jax.attacks import suites, white_box
from purify_jax.checks import InputError, check_choice, check_count, check_file_name, check_seed
from purify_jax.data import Dataset
from purify_jax.defense import Attackable, Defense, attackable
from purify_jax.devices.execution import Execution
from purify_jax.evaluation.adversarial import AdversarialImages
from purify_jax.evaluation.attacked import Evaluation
from purify_jax.evaluation.probes import red_flags, sweeps
from purify_jax.evaluation.protocol import Summary, own_draws, summary
from purify_jax.evaluation.records import Record, accuracy, union_accuracy
from purify_jax.evaluation.statistics import Interval
from purify_jax.purifiers import identity
from purify_jax.types import Array, Attack, Json, PredictFn

#: What ``Suite.skip`` calls the attack that knows the defense's keys.
SHARED_KEYS = "shared keys"


class SuiteResult(NamedTuple):
    """What a suite found.

    label: the name of the defense among the records, "defended" by default.
    bare: the name of a model beside it that has no purifier; None without one.
    records: model → per-image records; the models beside the defense come first.
    shared_keys: accuracy against the deterministic white box, for ``honest``; else None.
    probes, red_flags: short comparisons and what they say; empty without probe images.
    curve: the sweep, if one was asked for.
    left_out: attacks of the suite that the defense cannot be attacked by → the reason.
    """

    label: str
    bare: str | None
    records: Mapping[str, list[Record]]
    shared_keys: Interval | None
    probes: Json
    red_flags: list[red_flags.RedFlag]
    curve: sweeps.Curve | sweeps.Grid | None
    left_out: Mapping[str, str] = MappingProxyType({})

    def union_accuracy(self, label: str | None = None, scoring: str = "one_draw") -> Interval:
        """Share of images that withstand every attack of the suite."""
        return union_accuracy(self.records[label or self.label], scoring)

    def summary(self, label: str | None = None) -> Summary:
        """The average (the number to quote), the worst of N draws, and the cost."""
        return summary(self.records[label or self.label])


@dataclasses.dataclass(frozen=True)
class SuiteRun:
    """What is run of a suite; see :func:`evaluate_suite`.

    suite: "honest", "exhaustive", "paper", "rand", "standard" or "clean".
    draws: scoring draws of a defense with a purifier; a bare classifier has one.
    probe_images: images for the probes of the red flags; 0 for none.
    sweep: also a curve: "epsilon", "eot", "steps" or "steps_eot".
    skip: attacks to leave out by name; "shared keys" for the last row of ``honest``.
    seconds: no block of images (``Execution.block``) is begun that would probably end later, so that fewer
      images may be attacked. By default there is no limit.
    """

    suite: str = "honest"
    draws: int = 10
    probe_images: int = 48
    sweep: str | None = None
    skip: tuple[str, ...] = ()
    seconds: float | None = None

    def __post_init__(self) -> None:
        check_choice("suite", self.suite, sorted(suites.SUITES))
        if self.sweep is not None:
            check_choice("sweep", self.sweep, sorted(sweeps.NAMES))
        check_count("draws", self.draws)
        check_count("probe_images", self.probe_images, 0)

    def has_shared_keys(self, defense: Attackable) -> bool:
        """Whether the defense is also attacked by the white box that knows its keys."""
        wanted = self.suite == "honest" and SHARED_KEYS not in self.skip
        return wanted and is_defended(defense) and not _draws_nothing(defense)

    def draws_of(self, defense: Attackable) -> int:
        """How many draws score a defense: one where nothing is random."""
        return self.draws if is_defended(defense) and not _draws_nothing(defense) else 1

    def attacks(self, defense: Attackable, options: suites.Options) -> dict[str, Attack]:
        """Name → attack of the suite on a defense, without those to skip."""
        built = suites.build(self.suite, defense, options)
        return {name: attack for name, attack in built.items() if name not in self.skip}

    def check_skip(self, models: Mapping[str, Attackable], options: suites.Options) -> None:
        """Raises InputError for an attack to skip that the suite has for none of the models."""
        built = [suites.build(self.suite, model, options) for model in models.values()]
        known = list(dict.fromkeys(name for attacks in built for name in attacks))
        known += [SHARED_KEYS] if self.suite == "honest" else []
        if unknown := [name for name in self.skip if name not in known]:
            raise InputError(f"skip: got {unknown}, expected some of {known}")


def is_defended(defense: Attackable) -> bool:
    """Whether anything stands before the classifier; of one function nobody knows, so yes."""
    if not isinstance(defense, Defense):
        return True
    structure: Callable[[object], object] = jax.tree.structure
    return structure(defense.purifier) != structure(identity)


def _draws_nothing(defense: Attackable) -> bool:
    # A purifier that draws nothing is scored like the others, so that tables compare like with like.
    return not isinstance(defense, Defense) and defense.is_deterministic


def evaluate_suite(
    defense: PredictFn,
    dataset: Dataset,
    options: suites.Options,
    run: SuiteRun = SuiteRun(),
    *,
    seed: int = 0,
    label: str = "defended",
    beside: Mapping[str, PredictFn] = MappingProxyType({}),
    saved: Mapping[str, AdversarialImages] = MappingProxyType({}),
    execution: Execution = Execution(),
) -> SuiteResult:
    """Runs a suite of attacks against a defense, with the probes of the red flags.

    Args:
      defense: the purifier with its classifier, a bare classifier, or any function (keys, images) →
        log-probabilities. Of the latter, attacks that need the parts are left out and named.
      dataset: labelled images.
      options: norm, ε, and what overrides the suite's steps and EOT samples.
      run: which suite, and how much of it.
      seed: of all randomness.
      label: what the defense is called in the records.
      beside: label → further models to attack, for comparison; mostly
        ``{"undefended": undefended(defense.logits_fn)}``.
      saved: label → what keeps the adversarial images of this model.
      execution: how it is executed; 32 images side by side by default. The records are written to
        ``records_<label>.jsonl`` in its work directory. A shard has records alone.

    Returns the records and what follows from them. Raises InputError for an unknown suite or sweep, for
    an attack to skip that the suite does not have, and as :func:`~purify_jax.evaluation.evaluate`.
    """
    check_seed(seed)
    key = jax.random.key(seed)
    given = {**beside, label: defense}
    models = {name: attackable(each, dataset.image_shape) for name, each in given.items()}
    for name in models:
        check_file_name("label", name)
    options = suites.with_classes(options, models[label], dataset.image_shape)
    run.check_skip(models, options)
    execution = dataclasses.replace(execution, batch_size=execution.batch_size or 32)
    ball = {"norm": options.norm, "epsilon": options.epsilon}
    found: dict[str, list[Record]] = {}
    for name, model in models.items():
        draws = run.draws_of(model)
        attacked = Evaluation(
            key,
            model,
            run.attacks(model, options),
            dataset,
            draws,
            drop_fallen=suites.SUITES[run.suite].drop_fallen,
            passes=_passes(run.suite, model, options, dataset, draws),
            saved=saved.get(name),
            name=f"records_{name}",
            header={"suite": run.suite, **ball},
            seconds=run.seconds,
        )
        found[name] = attacked.records(execution)
    if run.seconds is not None:
        dataset = dataset.take(len({record["index"] for record in found[label]}))
    shared = None
    if run.has_shared_keys(models[label]):
        attacks = {suites.WHITE_BOX: white_box(models[label], options)}
        name = "records_shared_keys"
        sharing = Evaluation(
            key, models[label], attacks, dataset, 1, shared_keys=True, name=name, header=ball
        )
        shared = accuracy(sharing.records(execution), suites.WHITE_BOX)
    bare = next((name for name in beside if not is_defended(models[name])), None)
    missing = suites.left_out(run.suite, models[label], options)
    result = SuiteResult(label, bare, found, shared, {}, [], None, missing)
    if execution.shard != (0, 1):  # the rest needs all records
        return result
    inside = dataclasses.replace(execution, workdir=None, progress=False)
    try:
        return _probed(result, models[label], dataset, options, run, key, inside)
    except Exception as error:  # whatever a stranger's function raises: what attacks found is kept
        return result._replace(red_flags=[red_flags.failed(error)])


def _probed(
    result: SuiteResult,
    defense: Attackable,
    dataset: Dataset,
    options: suites.Options,
    run: SuiteRun,
    key: Array,
    execution: Execution,
) -> SuiteResult:
    """The result with probes, red flags and the sweep."""
    probes, flags, curve = {}, [], None
    if is_defended(defense) and run.probe_images > 0:
        few = dataset.take(min(run.probe_images, len(dataset)))
        probes = red_flags.probe(key, defense, few, options, execution)
    if run.sweep is not None:
        curve = sweeps.sweep(run.sweep, key, defense, dataset, options, execution)
    if is_defended(defense):
        flags = red_flags.red_flags(result.records[result.label], probes, curve=curve)
    return result._replace(probes=probes, red_flags=flags, curve=curve)


def _passes(
    suite: str, defense: Attackable, options: suites.Options, dataset: Dataset, draws: int
) -> dict[str, costs.Passes]:
    """Attack → its passes for one image, and those of the attacker's own draws."""
    image = jnp.asarray(dataset.batch(np.arange(1))[0])
    judging = costs.count_prediction(defense, image).times(own_draws(draws))
    attacks = suites.passes(suite, defense, options, image)
    return {"clean": judging, **{name: judging + each for name, each in attacks.items()}}
