"""All purifiers in one table: clean, attacked, corrupted, and what they cost.

purify-jax compare --score_model=runs/quickstart/score_model.safetensors \
    --classifier=runs/quickstart/classifier.safetensors --epsilon=0.15 --workdir=runs/comparison

Resumes from --workdir, purifier by purifier. Writes results.json and report.html.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, loading, shards
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError, check_count

loading.define(images=64, batch_size=64, score_model_required=True)
loading.define_ball()
flags.DEFINE_integer("steps", 20, "Attack steps.")
flags.DEFINE_integer("eot", 4, "Draws whose gradients are averaged (EOT).")
flags.DEFINE_integer("draws", 4, "Scoring draws.")
flags.DEFINE_integer("chain_steps", 200, "Steps of the Langevin chains.")
flags.DEFINE_integer("diffusion_steps", 20, "Steps of DiffPure.")
flags.DEFINE_integer("severity", 3, "Severity of the corruptions.")
flags.DEFINE_list("only", None, "Only these purifiers.")
flags.DEFINE_bool("transfer", True, "Score every purifier's attacked images on every other.")
shards.define()
FLAGS = flags.FLAGS
_OPTIONS = (
    "norm", "epsilon", "steps", "eot", "draws", "chain_steps", "diffusion_steps", "severity",
)  # fmt: skip

NOTE = (
    "All purifiers share one score network; their settings follow from its noise scale and were not tuned on "
    "these images. Accuracy of one draw with Wilson's 95% interval."
)
TERMS = (
    ("worst", "the lowest of the three attacks that follow: the number to quote"),
    ("blind", "PGD on the bare classifier"),
    ("BPDA+EOT", "the purifier's gradient taken as the identity"),
    ("exact+EOT", "the gradient through everything"),
    ("corrupted", "mean over the 15 corruptions at the severity above"),
    ("passes", "forward passes of the score network for one image, all restarts together"),
    ("ms per image", "one batch, compiled, median of five"),
)

TRANSFER = (
    "Accuracy of one draw, averaged over all: the images that exact+EOT made on one purifier (column), "
    "scored on another (row). The lowest number of a row is the one to quote."
)


def _purifiers(score_model: pj.models.Model, chain_steps: int):
    """Name → purifier, all with the model's noise σ and restarts (chains: one restart).

    Chains start from the image with no noise and take steps of 0.3 of the smallest level, so
    that ``chain_steps`` of them move about as far as the noise of the others.
    """
    make = functools.partial(
        pj.models.model_purifier,
        score_model,
        noise_scale=FLAGS.noise_scale,
        num_restarts=FLAGS.num_restarts,
    )
    chain = functools.partial(
        pj.models.model_purifier, score_model, num_steps=chain_steps, num_restarts=1
    )
    return {
        "none": pj.purifiers.identity,
        "ADP": make(method="adp", num_steps=FLAGS.num_steps, rate=FLAGS.rate),
        "Langevin": chain(method="langevin"),
        "MALA": chain(method="mala"),
        "one-step (Tweedie)": make(method="tweedie"),
        "annealed": make(method="annealed", num_steps=5),
        "probability flow": make(method="probability_flow", num_steps=5),
        "reverse SDE": make(method="reverse_sde", num_steps=5),
        "gradual noise": make(method="gradual", num_steps=4),
        "DiffPure SDE": make(method="diffpure_sde", num_steps=FLAGS.diffusion_steps),
        "DiffPure ODE": make(method="diffpure_ode", num_steps=FLAGS.diffusion_steps),
        "DDIM": make(method="ddim", num_steps=5),
        "GDMP": make(method="gdmp"),
        "likelihood": make(method="likelihood_maximisation", num_steps=5),
        "Gaussian blur": pj.purifiers.gaussian_blur(0.6),
        "JPEG 50": pj.purifiers.jpeg(50),
    }


def main(argv: list[str]) -> None:
    """Flags in, a table and a plot out."""
    del argv
    flagging.check_chosen("only")
    check_count("severity", FLAGS.severity, 1, 5)
    loaded = loading.load()
    dataset = loaded.dataset.take(FLAGS.images)
    everything = _purifiers(loaded.score_model, FLAGS.chain_steps)
    chosen = list(everything) if FLAGS.only is None else FLAGS.only
    for name in chosen:
        if name not in everything:
            raise InputError(f"only: got {name!r}, expected some of {list(everything)}")
    work = lambda place, shard: _rows(loaded, dataset, everything, chosen, place, shard)
    join = lambda place: shards.gather(place, [list(map(str, _files(Path(), n))) for n in chosen])

    def write(workdir: Path, rows: dict) -> None:
        matrix = None
        if FLAGS.transfer:
            matrix = pj.evaluation.transfer.measure(
                loading.key(),
                {n: loaded.undefended.replace(purifier=everything[n]) for n in chosen},
                {n: pj.evaluation.adversarial.read_npz(_files(workdir, n)[1]) for n in chosen},
                dataset.labels,
                draws=FLAGS.draws,
                execution=shards.execution(workdir),
            )
        _write(workdir, rows, matrix)

    settings = loading.settings(*_OPTIONS)
    shards.run(work, join, write, settings, models=loaded.models, data=dataset)


def _files(workdir: Path, name: str) -> tuple[Path, Path]:
    """The files of a purifier: its row, and the images that exact+EOT made on it."""
    stem = pj.evaluation.transfer.file_name(name)
    return workdir / f"{stem}.json", workdir / "adversarial" / f"{stem}.npz"


def _rows(loaded, dataset, everything, chosen, workdir, shard) -> dict:
    changed = {
        n: pj.evaluation.corruption.corrupted_dataset(dataset, n, FLAGS.severity, FLAGS.seed)
        for n in pj.corruptions.BENCHMARK
    }
    rows = {}
    mine = pj.devices.batches.of_shard(chosen, shard, f"{len(chosen)} purifiers")
    for name in pj.devices.progress.bar(
        mine, desc="purifiers", unit="purifier", disable=not FLAGS.progress
    ):
        path, place = _files(workdir, name)
        if not path.exists():
            defense = loaded.undefended.replace(purifier=everything[name])
            saved = pj.evaluation.AdversarialImages()
            row = _measure(name, defense, dataset, changed, saved)
            images = pj.evaluation.adversarial.npz(images=saved.of("exact+EOT"))
            write_atomically(place, images)
            network = type(loaded.score_model.network)
            first = _batch(dataset, 1)
            row["passes"] = pj.costs.network_passes(network, everything[name], *first)
            write_atomically(path, json.dumps(row, indent=2) + "\n")
        try:
            rows[name] = json.loads(path.read_text())
        except ValueError as error:
            raise InputError(
                f"workdir: {path} is damaged ({error}), expected a file as written; delete it to "
                "measure this purifier again"
            ) from error
    return rows


def _measure(name, defense, dataset, changed, saved) -> dict:
    atk, evaluation, key = pj.attacks, pj.evaluation, loading.key()
    samples = 1 if defense.is_deterministic else FLAGS.eot
    pgd = lambda gradient, eot: atk.PGD(
        atk.EOT(gradient, num_samples=eot),
        norm=FLAGS.norm,
        epsilon=FLAGS.epsilon,
        num_steps=FLAGS.steps,
    )
    attacks = {
        "blind": pgd(atk.blind(defense.logits_fn), 1),
        "BPDA+EOT": pgd(atk.bpda(defense), samples),
        "exact+EOT": pgd(atk.ExactGradient(defense), samples),
    }
    execution = dataclasses.replace(shards.execution(), progress=False)
    records = evaluation.evaluate(
        key, defense, attacks, dataset, draws=FLAGS.draws, saved=saved, execution=execution
    )
    row: dict = {n: evaluation.accuracy(records, n) for n in ("clean", *attacks)}
    found = evaluation.evaluate_corrupted(
        key, {name: defense}, lambda n, s: changed[n], names=pj.corruptions.BENCHMARK,
        severities=[FLAGS.severity], execution=execution,
    )  # fmt: skip
    row["corrupted"] = evaluation.corruption.mean_accuracy(found[name])
    row["milliseconds"] = 1000 * _seconds(defense, dataset) / min(FLAGS.batch_size, len(dataset))
    return row


def _batch(dataset, count: int):
    """Keys and images of the first images."""
    return pj.image_keys(loading.key(), np.arange(count)), dataset.batch(np.arange(count))[0]


def _seconds(defense, dataset) -> float:
    """Median seconds of one batch, compiled."""
    keys, images = _batch(dataset, min(FLAGS.batch_size, len(dataset)))
    compiled = pj.devices.memory.divided(defense, None)
    compiled(keys, images)  # it waits for the device
    times = []
    for _ in range(5):
        started = time.perf_counter()
        compiled(keys, images)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def _write(workdir, rows: dict, matrix: pj.evaluation.transfer.Matrix | None) -> None:
    transfer = pj.evaluation.transfer
    shares = ("clean", "blind", "BPDA+EOT", "exact+EOT")
    interval = lambda cell: f"{cell[0]:.3f} [{cell[1]:.3f}, {cell[2]:.3f}]"
    worst = {
        n: min((row[s] for s in shares[1:]), key=lambda cell: cell[0]) for n, row in rows.items()
    }
    columns = ["purifier", "worst", *shares, "corrupted", "passes", "ms per image"]
    body = [
        [
            name,
            interval(worst[name]),
            *(interval(row[s]) for s in shares),
            f"{row['corrupted']:.3f}",
            str(row["passes"]),
            f"{row['milliseconds']:.3f}",
        ]
        for name, row in rows.items()
    ]
    order = sorted(worst, key=lambda name: -worst[name][0])
    figure = pj.reporting.plots.ranked(
        order,
        {"worst of the three attacks": [tuple(worst[name][:3]) for name in order]},
        "accuracy, worst of\nthree attacks",
        beside=("ms per image", [rows[name]["milliseconds"] for name in order]),
    )
    best = order[0]
    kept = pj.reporting.verdicts.share(pj.evaluation.Interval(*worst[best]))
    verdict = [
        f"{best} keeps most under the worst of three short attacks: {kept}, at "
        f"{rows[best]['milliseconds']:.2g} ms per image.",
        "So few images do not separate purifiers whose intervals overlap. This is a screening: "
        "confirm the winner with evaluate --suite=honest.",
    ]
    summary = (
        f"{FLAGS.norm} ε = {FLAGS.epsilon:g}, {FLAGS.steps} steps, EOT {FLAGS.eot}, {FLAGS.images} "
        f"images; corruptions of severity {FLAGS.severity}."
    )
    sections = [
        pj.reporting.Section("Purifiers", NOTE, columns, body, terms=TERMS),
        pj.reporting.Section(
            "Accuracy against cost",
            "Best first, with 95% intervals; the table above has the numbers.",
            figure=figure,
            alt=f"A line per purifier: accuracy under its worst attack, and milliseconds. Best: {best}.",
        ),
    ]
    found: dict = {}
    flags: list = []
    if matrix is not None:
        flags = transfer.red_flags(matrix)
        found = {"transfer": transfer.content(matrix, flags)}
        sections += [
            pj.reporting.Section("Transfer between purifiers", TRANSFER, *transfer.table(matrix)),
            pj.reporting.Section("Red flags", flags=[str(flag) for flag in flags]),
        ]
    pj.reporting.pages.write_results(
        workdir,
        title="Comparison of purifiers",
        summary=summary,
        columns=columns,
        rows=body,
        sections=sections,
        content={"settings": loading.settings(*_OPTIONS), "purifiers": rows, **found},
        notes=[f"RED FLAG: {flag}" for flag in flags],
        seed=FLAGS.seed,
        figures={"accuracy_against_cost": figure},
        verdict=verdict,
    )


if __name__ == "__main__":
    cli.run(main)
