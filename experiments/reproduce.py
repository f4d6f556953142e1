"""Trains, attacks, detects, corrupts and certifies one data set; writes results/<suite>/.

purify-jax reproduce --suite=mnist --data_dir=DIR --budget=120

Each part is one command of this project; a part whose result is there for the same command is not
repeated, and a part that was killed continues. --budget (minutes on two CPU cores) scales training
steps, attack steps and images, --images limits the images alone, and the result says so. --publish
also writes pretrained/.
"""

import json
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, locks, number_flags, provenance
from experiments.reproduction import plans, publishing
from experiments.reproduction.parts import SHIPPED, Part, Plan
from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError

flags.DEFINE_enum("suite", "mnist", plans.NAMES, "Which data set, or defense of one.")
number_flags.define("budget", None, "Minutes on two CPU cores (default: the suite's full plan).")
flags.DEFINE_string("workdir", None, "Folder for training and records (default runs/<suite>).")
flags.DEFINE_string("results", None, "Folder for results (default results/<suite>).")
flags.DEFINE_list("parts", None, "Only these parts.")
flags.DEFINE_integer(
    "images", None, "Attack, purify or certify at most so many images, all else as planned."
)
flags.DEFINE_bool("publish", False, "Write the models and their card into pretrained/.")
flags.DEFINE_bool(
    "publish_networks", False, "Write what the chosen training parts made into pretrained/."
)
flagging.define_data()
FLAGS = flags.FLAGS

PRETRAINED = Path("pretrained")


def main(argv: list[str]) -> None:
    """Flags in, results/<suite>/ out."""
    del argv
    if FLAGS.budget is not None and not 0 < FLAGS.budget < math.inf:
        raise InputError(f"budget: got {FLAGS.budget}, expected a positive number of minutes")
    workdir = Path(FLAGS.workdir or f"runs/{FLAGS.suite}")
    results = Path(FLAGS.results or f"results/{FLAGS.suite}")
    flagging.check_chosen("parts")
    plan = plans.plan(FLAGS.suite, FLAGS.budget, workdir, FLAGS.data_dir)
    if FLAGS.images is not None:
        plan = plans.with_fewer_images(plan, FLAGS.images)
    names = [part.name for part in plan.parts]
    unknown = sorted(set(FLAGS.parts or []) - set(names))
    if unknown:
        raise InputError(f"parts: got {unknown}, expected some of {names}")
    locks.hold("workdir", workdir)
    locks.hold("results", results)
    for part in plan.parts:
        if FLAGS.parts is None or part.name in FLAGS.parts:
            _run(part, plan, results)
            for file, name in part.shipped.items() if FLAGS.publish_networks else ():
                made = publishing.publish_network(part.folder / file, PRETRAINED / name)
                print(f"published: {made['name']}, {made['bytes']} bytes, {made['stored_as']}")
    print(f"results: {results}")
    if FLAGS.publish:
        locks.hold("publish", str(PRETRAINED))
        for path in publishing.publish(plan, results, PRETRAINED):
            print(f"published: {path}")


def _run(part: Part, plan: Plan, results: Path) -> None:
    # With --results, that folder gets every record. Otherwise suites share the records of shared trainings.
    shared = part.shared and FLAGS.results is None
    target = (results.parent / part.shared if shared else results) / f"{part.name}.json"
    command = provenance.shown(part.command, FLAGS.data_dir)
    if target.exists() and part.is_done(json.loads(target.read_text()), command):
        print(f"{part.name}: done before", flush=True)
        _take_shipped_models(part, plan)
        return
    print(f"{part.name}: {shlex.join(part.command)}", flush=True)
    commit, networks = provenance.commit(), part.networks()
    # The seconds of a command that continues are those of the last piece.
    continued = part.folder.is_dir() and any(part.folder.iterdir())
    started = time.monotonic()
    # As ``python -m experiments.NAME``, and where the package is installed too.
    name, flags_of = part.command[0].rpartition(".")[2], part.command[1:]
    extra = [] if FLAGS.progress else ["--noprogress"]
    done = subprocess.run(
        [sys.executable, "-m", "purify_jax.command", name, *flags_of, *extra], check=False
    )
    if done.returncode:
        raise InputError(f"{part.name}: its command ended with status {done.returncode}")
    if part.is_training and not (part.folder / next(iter(part.shipped))).exists():
        raise InputError(f"{part.name}: training was stopped; the same command continues")
    found = {} if part.is_training else json.loads((part.folder / "results.json").read_text())
    content = {
        "command": command,
        "commit": commit,
        "budget": plan.note,
        "seconds": round(time.monotonic() - started, 1),
        **({"continued": True} if continued else {}),
        **({"network_digests": networks} if networks else {}),
        **{k: provenance.without_paths(v) for k, v in found.items() if k != "seconds"},
    }
    if part.is_training:
        (part.folder / SHIPPED).unlink(missing_ok=True)
    elif any(
        (path.parent / SHIPPED).exists() for path in (plan.score_model, plan.classifier) if path
    ):
        content["networks"] = "as shipped in pretrained/"
    content.setdefault("versions", pj.reporting.versions())
    for figure in sorted((part.folder / "figures").glob("*.png")):
        marked = provenance.mark_png(figure.read_bytes(), command, commit)
        write_atomically(results / "figures" / f"{part.name}_{figure.name}", marked)
    report = part.folder / "report.html"
    if report.exists():
        page = provenance.mark_html(report.read_text(), command, commit)
        write_atomically(results / f"{part.name}.html", page)
    write_atomically(target, pj.reporting.pages.as_json(content))


def _take_shipped_models(part: Part, plan: Plan) -> None:
    """Puts the published models where a training that is done, but not on this machine, left them."""
    folder = next((f for f in pj.pretrained.folders() if f.is_dir()), PRETRAINED)
    # The demo trains as well, both networks of its plan.
    made = [p for p in (plan.score_model, plan.classifier) if p and p.parent == part.folder]
    for file, name in (part.shipped or {p.name: f"{plan.model}_{p.name}" for p in made}).items():
        target, shipped = part.folder / file, folder / name
        if target.exists() or not shipped.is_file():
            continue
        if (folder / f"{plan.model}.json").is_file():
            pj.pretrained.load(plan.model)  # checks the digests
        part.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, shipped.read_bytes())
        write_atomically(part.folder / SHIPPED, "The network is that of pretrained/.\n")
        print(f"{part.name}: not trained here; taken from {shipped}", flush=True)


if __name__ == "__main__":
    cli.run(main)
