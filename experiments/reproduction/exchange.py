"""results/ → files in the formats of RobustBench and AttackBench.

purify-jax exchange --out=exchange

Writes, for every attacked evaluation of results/:

- robustbench/model_info/DATASET/NORM/NAME.json, RobustBench's entry of a model: its fields, accuracies in
  percent as text. "reported" is the average over fresh draws; "autoattack_acc" is null unless the suite was
  AutoAttack's "rand" with its 100 steps and 20 draws ("standard" has no FAB here), and "unreliable" says
  whether there were red flags. What RobustBench has no field for (images, intervals, randomness) is in
  the footnote.
- attackbench/DATASET/MODEL_NORM.json, the rows of AttackBench's compiled results: one attack on one model.
  "ASR" is the share of images that are wrong under the attack, as there. "optimality" needs the
  smallest distances, and calls and times are not recorded for each attack: they are null. Beside its columns: epsilon,
  images and the 95% interval of the ASR. In suites that do not attack fallen images again only the
  first attack met all images; the others are in the row of the whole suite.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

import purify_jax as pj
from experiments.common import cli, locks
from experiments.common.provenance import ROOT
from experiments.reproduction.defenses import shipped_as
from experiments.reproduction.results import Result, attacked, fraction, summary
from purify_jax.atomic import check_output, write_atomically
from purify_jax.checks import InputError

flags.DEFINE_string("results", str(ROOT / "results"), "Folder of results.")
flags.DEFINE_string("out", None, "Folder for the files.", required=True)
FLAGS = flags.FLAGS

#: RobustBench's and AttackBench's names of norms.
ROBUSTBENCH = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def main(argv: list[str]) -> None:
    """results/ in, two folders of JSON files out."""
    del argv
    check_output("out", FLAGS.out, folder=True)
    locks.hold("out", FLAGS.out)
    written = export(Path(FLAGS.results), ROOT / "pretrained", Path(FLAGS.out))
    print(f"{len(written)} files written to {FLAGS.out}")


def export(results: Path, cards: Path, out: Path) -> list[Path]:
    """Writes both formats; returns the files. InputError if there is nothing to write."""
    written = []
    tables: dict[Path, list[Result]] = {}
    for suite, name, part in evaluations(results, cards):
        card = json.loads((cards / f"{shipped_as(suite)}.json").read_text())
        norm = part["settings"]["norm"]
        info = Path(
            "robustbench/model_info", card["data"], ROBUSTBENCH[norm], f"{suite}_{name}.json"
        )
        written.append(out / info)
        write_atomically(out / info, json.dumps(model_info(suite, card, part), indent=2) + "\n")
        for row in attack_rows(suite, card, part):
            place = out / "attackbench" / card["data"] / f"{row['model']}_{norm}.json"
            tables.setdefault(place, []).append(row)
    if not written:
        raise InputError(f"results: {results} holds no attacked evaluation, expected some")
    for place, rows in tables.items():
        write_atomically(place, json.dumps(rows, indent=2) + "\n")
    return [*written, *tables]


def evaluations(results: Path, cards: Path) -> Iterator[tuple[str, str, Result]]:
    """(suite of results, name, content) of every evaluation in which a model that ships with a card was attacked."""
    for path, part in attacked(results):
        if (cards / f"{shipped_as(path.parent.name)}.json").is_file():
            yield path.parent.name, path.stem, part


def model_info(suite: str, card: Result, part: Result) -> dict[str, Any]:
    """RobustBench's entry of the defended model; who wrote what, and where, is left to its authors."""
    setting = part["settings"]
    clean, found = part["rows"]["defended"][0]["one_draw"], summary(part)
    names = ("num_steps", "num_restarts", "noise_scale")
    given = {name: setting[name] for name in names if setting.get(name) is not None}
    purification = {**card["purification"], **given}
    network = card["files"]["classifier"]["training"]["network"]["name"]
    percent = lambda share: f"{100 * share:.2f}"
    span = lambda i: f"{percent(i[0])} [{percent(i[1])}, {percent(i[2])}] on {i[3]} images"
    robust = percent(found["average"][0])
    footnote = (
        f"Randomised, with an optimisation loop before the classifier: attacked by the suite "
        f"{setting['suite']!r} of purify_jax through all of it, scored by the average of {found['draws']} fresh "
        f"draws. 95% intervals: clean {span(clean)}, robust {span(found['average'])}."
    )
    return {
        "link": None,
        "name": f"purify_jax, {suite}",
        "authors": None,
        "additional_data": False,
        "number_forward_passes": purification["num_restarts"],
        "dataset": card["data"],
        "venue": None,
        "architecture": f"{network} behind {purification['method']} with {purification.get('num_steps', 1)} steps",
        "eps": fraction(setting["epsilon"]),
        "clean_acc": percent(clean[0]),
        "reported": robust,
        "autoattack_acc": robust if _is_autoattack(setting) else None,
        "footnote": footnote,
        "unreliable": bool(part["red_flags"]),
    }


def attack_rows(suite: str, card: Result, part: Result) -> list[dict[str, Any]]:
    """AttackBench's rows: attack by attack where each met all images, and the whole suite."""
    setting = part["settings"]
    found = []
    for label, rows in part["rows"].items():
        # Forward and backward passes per image: of the whole defense, or of the bare classifier.
        passes = [row["passes"][:2] if label == "defended" else row["passes"][2:] for row in rows]
        names = [row["attack"] for row in rows]
        shown = list(zip(names, (row["one_draw"] for row in rows), passes, strict=True))[1:]
        if pj.attacks.suites.SUITES[setting["suite"]].drop_fallen:
            shown = shown[:1]
        total = [sum(each) for each in zip(*passes, strict=True)]
        average = part["summary"][label]["average"]
        shown.append((f"{setting['suite']} (all of the suite)", average, total))
        for attack, (value, low, high, images), (forwards, backwards) in shown:
            found.append(
                {
                    "dataset": card["data"],
                    "attack": attack,
                    "library": "purify_jax",
                    "model": f"{suite}_{label}",
                    "threat_model": setting["norm"],
                    "ASR": 1 - value,
                    "optimality": None,
                    "n_forwards": forwards,
                    "n_backwards": backwards,
                    "time": None,
                    "epsilon": setting["epsilon"],
                    "images": images,
                    "ASR_interval": [1 - high, 1 - low],
                }
            )
    return found


def _is_autoattack(setting: Result) -> bool:
    full = setting["steps"] in (None, 100) and setting["eot"] in (None, 20)
    return setting["suite"] == "rand" and full


if __name__ == "__main__":
    cli.run(main)
