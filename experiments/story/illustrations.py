"""Figures and the image browser of the quickstart and the demo: sections of the report."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import purify_jax as pj
from experiments.story.accuracy import NamedAttack
from purify_jax import energy, evaluation
from purify_jax.evaluation import records
from purify_jax.evaluation.predictions import check_classes
from purify_jax.evaluation.probes.sweeps import AttackedAndScored
from purify_jax.keys import fold_keys, image_keys, stream_key
from purify_jax.pytrees import Partial
from purify_jax.reporting import Section, plots
from purify_jax.reporting.gallery import MOST_IMAGES, gallery, trajectory
from purify_jax.types import Array

#: Images whose steps and energies are averaged, and among which those of the strip are looked for.
MOST_IN_FIGURES = 128
BROWSER = (
    "Choose an image. Below each is the defense's answer, ✓ where it is right. Press Play, or move the slider: one "
    "purified copy goes from the noised image to the end, with the size of each step and the score norm where it "
    "began. The classifier alone judges these pictures; the defense averages its answers on all purified copies."
)


def sections(
    key: Array,
    defense: pj.defense.Defense,
    score_model: pj.models.Model,
    named: list[NamedAttack],
    adversarial: dict[str, np.ndarray],
    test: pj.data.Dataset,
    config: Any,
    sweep: bool = True,
) -> dict[str, Section]:
    """The report's figures: name → section.

    adversarial: attack → its images of the first images of ``test``.
    sweep: with accuracy against ε, which takes many attacks more.
    """
    blind, exact = (adversarial[e.name][:MOST_IN_FIGURES] for e in (named[0], named[-1]))
    images, labels = test.batch(np.arange(len(blind)))
    # What the attack drew its randomness from must not be what the defense draws from.
    keys = fold_keys(image_keys(stream_key(key, "figures"), np.arange(len(blind))), 1)
    found = {
        "browser": _browser(defense, keys, images, labels, named, adversarial, test.class_names),
        "purification": _strip(defense, keys, images, blind, exact, labels, test.class_names),
    }
    if sweep:
        few = test.take(min(64, len(test)))
        found["accuracy_against_epsilon"] = _sweep(key, defense, named, few, config)
    found["steps"] = _steps(defense, keys, images, blind)
    if score_model.role == "energy":
        found["energy"] = _energies(defense, score_model, keys, images, blind)
    return found


def _browser(defense, keys, images, labels, named, adversarial, class_names) -> Section:
    few = slice(0, MOST_IMAGES)
    # The strongest attack comes first; the blind one shows what purification can do.
    attacked = {entry.name: adversarial[entry.name][few] for entry in (named[-1], named[0])}
    content = gallery(
        defense, keys[few], images[few], labels[few], attacked, class_names=class_names or None
    )
    return Section("Image by image", BROWSER, gallery=content)


def _strip(defense, keys, images, blind, exact, labels, class_names) -> Section:
    predict = lambda x: np.asarray(defense.logits_fn(jnp.asarray(x)).argmax(-1))
    # Images that the blind attack turned, so that there is something to see; one of each class.
    clean, turned = predict(images) == labels, predict(blind) != labels
    of_class = {int(labels[i]): i for i in reversed(np.flatnonzero(clean & turned))}
    chosen = np.array(sorted(of_class.values() or range(len(labels)))[:6])
    # Of all images: a batch of the browser's size is compiled already.
    purify = lambda x: np.asarray(pj.jit(Partial(trajectory, defense.purifier))(keys, x))[:, chosen]
    answer = lambda x: np.asarray(pj.jit(defense)(keys, x)).argmax(-1)[chosen]
    path, end, answers = purify(blind), purify(exact)[-1], (answer(blind), answer(exact))
    images, blind, exact, labels = (x[chosen] for x in (images, blind, exact, labels))
    shown = sorted({0, (len(path) - 1) // 2, len(path) - 1})
    columns = ["clean", "blind attack", "noised", *(f"step {s}" for s in shown[1:-1]), "purified"]
    columns += ["exact attack", "purified"]
    stages = [images, blind, *(path[s] for s in shown), exact, end]
    verdicts = [predict(stage) for stage in stages]
    verdicts[-3], verdicts[-1] = answers
    name = lambda label: class_names[label] if class_names else str(label)
    rows = [[stage[i] for stage in stages] for i in range(len(chosen))]
    captions = [
        [f"{name(v[i])}{'' if v[i] == label else ' ✗'}" for v in verdicts]
        for i, label in enumerate(labels)
    ]
    right, left = (int((answer == labels).sum()) for answer in answers)
    which = (
        "images that the blind attack turned"
        if of_class
        else "images, none turned by the blind attack"
    )
    text = (
        f"{len(chosen)} {which}. The defense reads {right} of them right, and {left} "
        "where the attack goes through the purifier. Below each picture: the answer, ✗ where it is wrong; that of "
        "the defense below a purified picture, which is one of its copies, and of the classifier alone elsewhere."
    )
    alt = (
        f"{len(chosen)} images in rows: clean, attacked without knowledge of the purifier, noised and purified, "
        f"then attacked through the purifier and purified. Right at the end: {right}, and {left}."
    )
    figure = plots.image_grid(rows, columns, captions)
    return Section("Purification", text, figure=figure, alt=alt, pictures=True)


def _steps(defense, keys, images, adversarial) -> Section:
    sizes, norms = {}, {}
    for name, batch in {"clean": images, "attacked": adversarial}.items():
        _, info = pj.jit(defense.purifier)(keys, batch)
        norms[f"{name} images"] = np.asarray(info.score_norms).mean((1, 2))
        sizes[f"{name} images"] = np.asarray(info.step_sizes).mean((1, 2))
    steps = np.arange(1, 1 + len(info.step_sizes))
    columns = ["step", *(f"{what}, {n}" for what in ("step size", "score norm") for n in sizes)]
    numbers = [*sizes.values(), *norms.values()]
    rows = [[str(s), *(f"{line[s - 1]:.3g}" for line in numbers)] for s in steps]
    text = "Means over images and purified copies, of clean images and of those that the blind attack made."
    if len(steps) == 1:
        return Section("Steps", text, columns, rows)
    # The score falls to nearly nothing at once or stays: both are seen from 0 on.
    figure = plots.panels(
        steps.tolist(), {"step size α": sizes, "score norm ‖s‖": norms}, "purification step"
    )
    alt = "Two line charts over the purification's steps, step size and score norm; the table has the numbers."
    return Section("Steps", text, columns, rows, figure, alt=alt, folded="The numbers")


def _energies(defense, score_model, keys, images, adversarial) -> Section:
    energy_fn = pj.jit(energy.NetworkEnergy(score_model.network, score_model.params))
    purified = jax.jit(lambda k, x: defense.purifier(k, x)[0][0])(keys, adversarial)
    stages = {"clean": images, "attacked": adversarial, "purified": purified}
    samples = {name: np.asarray(energy_fn(batch)) for name, batch in stages.items()}
    medians = {name: float(np.median(sample)) for name, sample in samples.items()}
    text = "Median energy: " + ", ".join(f"{name} {m:.3g}" for name, m in medians.items()) + "."
    if medians["clean"] < medians["attacked"] > medians["purified"]:
        text = f"The attack raises the energy of an image; purification lowers it again. {text}"
    alt = f"Three overlaid histograms of the energy. {text}"
    return Section("Energy", text, figure=plots.histograms(samples, "energy E(x)"), alt=alt)


def _sweep(key, defense, named, dataset, config) -> Section:
    epsilons = [config.epsilon * f for f in (0.0, 1 / 3, 2 / 3, 1.0, 4 / 3, 2.0)]
    images, labels = dataset.batch(np.arange(len(dataset)))
    lines: dict[str, list[records.Interval]] = {}

    def add(name: str, entry: NamedAttack, model) -> None:
        # ε is a leaf of the attack: one compilation serves the whole curve.
        def correct(epsilon: float) -> int:
            run = AttackedAndScored(
                attack=entry.make(epsilon, 10), scorer=evaluation.Draws(model, draws=1)
            )
            stream = stream_key(key, "sweep")
            predicted = evaluation.map_images(run, stream, images, labels)
            check_classes(predicted, f"{name} at epsilon {epsilon:g}")
            return int((predicted == labels).sum())

        lines[name] = [records.wilson(correct(float(e)), len(dataset)) for e in epsilons]

    bare = pj.undefended(defense.logits_fn)
    add("undefended, blind PGD", named[0], bare)
    for entry in named:
        add(f"defended, {entry.name}", entry, defense)
    text = (
        f"{len(dataset)} images, 10 steps each; bars: 95% intervals, those of one ε side by side."
    )
    figure = plots.curves(
        epsilons,
        {name: [i.value for i in line] for name, line in lines.items()},
        f"ε ({config.norm})",
        "accuracy",
        {name: [(i.low, i.high) for i in line] for name, line in lines.items()},
        unit_interval=True,
    )
    rows = [
        [f"{e:.3g}", *(str(line[i]) for line in lines.values())] for i, e in enumerate(epsilons)
    ]
    alt = "Line chart: accuracy falls as the attack may change more; the table has the numbers."
    return Section(
        "Accuracy against ε", text, ["ε", *lines], rows, figure, alt=alt, folded="The numbers"
    )  # fmt: skip
