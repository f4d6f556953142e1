"""A whole suite against a defense and against its bare classifier: records, probes, red flags."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from purify_jax import costs
from purify_jax.attacks import suites
from purify_jax.checks import InputError, check_choice, check_count, check_file_name, check_seed
from purify_jax.data import Dataset
from purify_jax.defense import Defense, undefended
from purify_jax.devices import sharding
from purify_jax.evaluation import red_flags, sweeps
from purify_jax.evaluation.attacked import evaluate
from purify_jax.evaluation.protocol import Figures, figures, own_draws
from purify_jax.evaluation.records import Record, accuracy, worst_case
from purify_jax.evaluation.statistics import Interval
from purify_jax.types import Attack

#: What ``SuiteRun.skip`` calls the attack of one who knows the defense's keys.
SHARED_KEYS = "shared keys"
#: (model label, attack, images done, records of the batch or None before the first).
OnProgress = Callable[[str, str, int, list[Record] | None], None]


class SuiteResult(NamedTuple):
    """What a suite found.

    records: "undefended" and "defended" → per-image records.
    shared_keys: accuracy against the deterministic white box, for ``honest``; else None.
    probes, red_flags: short comparisons and what they say; empty without probe images.
    curve: the sweep, if one was asked for.
    """

    records: Mapping[str, list[Record]]
    shared_keys: Interval | None
    probes: Mapping[str, Any]
    red_flags: list[red_flags.RedFlag]
    curve: sweeps.Curve | sweeps.Grid | None

    def worst_case(self, label: str = "defended", scoring: str = "one_draw") -> Interval:
        """Share of images that withstood every attack of the suite."""
        return worst_case(self.records[label], scoring)

    def figures(self, label: str = "defended") -> Figures:
        """The figures to quote: the average, the worst of N, what it cost."""
        return figures(self.records[label])


@dataclasses.dataclass(frozen=True)
class SuiteRun:
    """How a suite is run; see :func:`evaluate_suite`."""

    suite: str = "honest"
    draws: int = 10
    batch_size: int = 32
    probe_images: int = 48
    sweep: str | None = None
    block: int | None = None
    shard: tuple[int, int] = (0, 1)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("suite", self.suite, sorted(suites.SUITES))
        if self.sweep is not None:
            check_choice("sweep", self.sweep, sorted(sweeps.NAMES))
        check_count("draws", self.draws)
        check_count("batch_size", self.batch_size)
        check_count("probe_images", self.probe_images, 0)
        if self.block is not None:
            check_count("block", self.block)

    @property
    def has_shared_keys(self) -> bool:
        """Whether a purifier is also attacked by one who knows its keys."""
        return self.suite == "honest" and SHARED_KEYS not in self.skip


def evaluate_suite(
    defense: Defense,
    dataset: Dataset,
    options: suites.Options,
    run: SuiteRun = SuiteRun(),
    *,
    seed: int = 0,
    models: Mapping[str, Defense] | None = None,
    workdir: str | Path | None = None,
    mesh: Mesh | None = None,
    on_progress: OnProgress | None = None,
    keep_images: Mapping[str, Callable] | None = None,
) -> SuiteResult:
    """Runs a suite of attacks against a defense, and against its classifier without the purifier.

    Args:
      defense: purifier and classifier.
      dataset: labelled images.
      options: norm, ε, and what overrides the suite's steps and EOT samples.
      run: the suite ("honest", "paper", "rand", "standard", "clean"), scoring draws, batch size,
        images for the red flags' probes (0 for none), a sweep ("epsilon", "eot", "steps",
        "steps_eot"), images per block, which shard of the blocks (then there are records alone), and attacks to
        leave out by name (what is left says less; "shared keys" for the last row of ``honest``).
      seed: of all randomness.
      models: label → defense, instead of "undefended" and "defended".
      workdir: a folder for ``records_<label>.jsonl``; an evaluation that was killed continues there.
      mesh: devices to split batches over; all of them by default.
      on_progress: called before an attack's first batch (with None) and after every batch.
      keep_images: label → (attack, indices, images) callback, see :func:`evaluate`.

    Returns the records and what follows from them. Raises InputError for an unknown suite or sweep, and
    for an attack to skip that the suite does not have.
    """
    check_seed(seed)
    key = jax.random.key(seed)
    mesh = sharding.default_mesh() if mesh is None else mesh
    if models is None:
        models = {"undefended": undefended(defense.logits_fn), "defended": defense}
    for label in models:
        check_file_name("models", label)
    chosen = chosen_attacks(run, models, options)
    found: dict[str, list[Record]] = {}
    for label, model in models.items():
        draws = 1 if label == "undefended" else run.draws
        notify = functools.partial(on_progress or _silent, label)
        found[label] = evaluate(
            key,
            model,
            chosen[label],
            dataset,
            draws=draws,
            batch_size=run.batch_size,
            passes=_passes(run.suite, model, options, dataset, draws),
            path=None if workdir is None else Path(workdir) / f"records_{label}.jsonl",
            header={"suite": run.suite, **_identity(options)},
            drop_fallen=suites.SUITES[run.suite].drop_fallen,
            ball=(options.norm, options.epsilon),
            mesh=mesh,
            block=run.block,
            shard=run.shard,
            on_start=functools.partial(_starting, notify),
            on_batch=notify,
            keep_images=(keep_images or {}).get(label),
        )
    target = models.get("defended")
    shared, probes, curve = None, {}, None
    where: dict[str, Any] = {"batch_size": max(run.batch_size, 1), "mesh": mesh}
    if target is not None and run.has_shared_keys:
        path = None if workdir is None else Path(workdir) / "records_shared_keys.jsonl"
        shared = _shared_keys(key, target, dataset, options, path, run.block, run.shard, **where)
    if run.shard != (0, 1):  # the rest needs all records
        return SuiteResult(found, shared, {}, [], None)
    if target is not None and run.probe_images > 0:
        few = dataset.take(min(run.probe_images, len(dataset)))
        probes = red_flags.probe(key, target, few, options, **where)
    if run.sweep is not None:
        swept = next(iter(models.values())) if target is None else target
        curve = sweeps.sweep(run.sweep, key, swept, dataset, options, **where)
    flags = []
    if target is not None:
        flags = red_flags.red_flags(found["defended"], probes, curve=curve)
    return SuiteResult(found, shared, probes, flags, curve)


def _identity(options: suites.Options) -> dict[str, Any]:
    """What tells attacks apart whose names are the same; only what was given, so that other files stay as they are."""
    given = {name: getattr(options, name) for name in ("steps", "eot", "surrogate_restarts")}
    chosen = {name: value for name, value in given.items() if value is not None}
    return {"norm": options.norm, "epsilon": options.epsilon, **chosen}


def chosen_attacks(
    run: SuiteRun, models: Mapping[str, Defense], options: suites.Options
) -> dict[str, dict[str, Attack]]:
    """Label → the suite's attacks on that model by name, without those to skip; InputError for one that is none."""
    built = {label: suites.build(run.suite, model, options) for label, model in models.items()}
    known = list(dict.fromkeys(name for attacks in built.values() for name in attacks))
    known += [SHARED_KEYS] if run.suite == "honest" else []
    if unknown := [name for name in run.skip if name not in known]:
        raise InputError(f"skip: got {unknown}, expected some of {known}")
    return {
        label: {name: attack for name, attack in attacks.items() if name not in run.skip}
        for label, attacks in built.items()
    }


def _passes(
    suite: str, defense: Defense, options: suites.Options, dataset: Dataset, draws: int
) -> dict[str, costs.Passes]:
    """Attack → its passes for one image, and those of the attacker's own draws."""
    image = jnp.asarray(dataset.batch(np.arange(1))[0])
    judging = costs.count_prediction(defense, image).times(own_draws(draws))
    attacks = suites.passes(suite, defense, options, image)
    return {"clean": judging, **{name: judging + each for name, each in attacks.items()}}


def _silent(label: str, attack: str, done: int, batch: list[Record] | None) -> None:
    """Nobody listens."""


def _starting(notify: Callable, attack: str) -> None:
    notify(attack, 0, None)


def _shared_keys(
    key: jax.Array,
    defense: Defense,
    dataset: Dataset,
    options: suites.Options,
    path: Path | None,
    block: int | None,
    shard: tuple[int, int],
    batch_size: int,
    mesh: Mesh | None,
) -> Interval:
    found = evaluate(
        key,
        defense,
        {suites.WHITE_BOX: suites.white_box(defense, options)},
        dataset,
        draws=1,
        batch_size=batch_size,
        path=path,
        header=_identity(options),
        shared_keys=True,
        ball=(options.norm, options.epsilon),
        mesh=mesh,
        block=block,
        shard=shard,
    )
    return accuracy(found, suites.WHITE_BOX)


def survivors_so_far(records: list[Record]) -> float:
    """Share of images that every record so far calls right (a progress bar's figure)."""
    survived: dict[int, bool] = {}
    for record in records:
        index = record["index"]
        survived[index] = survived.get(index, True) and bool(record.get("one_draw", False))
    return float(np.mean(list(survived.values()))) if survived else 1.0
