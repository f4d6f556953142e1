"""Robust accuracy and what it costs: our suites beside PyTorch's ways, on one defense with the same weights.

python -m benchmarks.whole_answer --model=digits --epsilon=0.15 --images=128 \
    --out=benchmarks/results/whole_answer_digits.json

Every way is a process of its own, started with nothing compiled, so its seconds are what a user waits. Ours include
clean accuracy, ten scoring draws after each attack and a report. PyTorch's include the import of JAX, which reads the
weights. Backward passes are those through the purifier. All ways are judged alike, by ten fresh draws of the defense:
the average over the draws, and how many images all ten have right. AutoAttack hands back the clean image where it
fooled no draw. The ways: ``honest``, ``honest:STEPS``, ``rand``, and those of ``benchmarks.peers.torch_attacks``.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import purify_jax as pj
from benchmarks import accuracy, child, ratios
from benchmarks.settings import torch_or_none
from experiments.common import cli, provenance
from purify_jax.atomic import check_output, write_atomically
from purify_jax.attacks import saved
from purify_jax.checks import InputError, check_choice
from purify_jax.models.versions import versions

OURS = ("honest", "rand")
PEERS = ("pgd_eot", "pgd_eot_compiled", "autoattack")
#: Models that have a twin in PyTorch.
MODELS = ("cifar10", "digits")
flags.DEFINE_enum("model", "digits", MODELS, "A defense that ships.")
flags.DEFINE_float("epsilon", 0.15, "Radius of the Linf ball.")
flags.DEFINE_integer("images", 128, "Images, from the start of the test split.", lower_bound=1)
flags.DEFINE_integer("draws", 10, "Fresh draws that judge each image.", lower_bound=1)
flags.DEFINE_integer("peer_steps", 200, "Steps of PyTorch's PGD.", lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "Images side by side, in all ways.", lower_bound=1)
flags.DEFINE_list("ways", [*OURS, *PEERS], "What is measured.")
flags.DEFINE_string("data_dir", None, "Folder of prepared data, for models but digits.")
flags.DEFINE_string("out", None, "JSON file to write.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Flags in; a table on the terminal and JSON out, written anew after each way."""
    del argv
    _check()
    ready = pj.pretrained.load(FLAGS.model)
    test = pj.load_split(ready.card["data"], "test", FLAGS.data_dir).take(FLAGS.images)
    torch = torch_or_none()
    result: dict[str, Any] = {
        "command": provenance.shown(["benchmarks.whole_answer", *_shown_flags()], None),
        "commit": provenance.commit(),
        "versions": {**versions(), "torch": torch.__version__ if torch else None},
        "rows": [],
    }
    for way in FLAGS.ways:
        with tempfile.TemporaryDirectory() as folder:
            found, adversarial = (_peer if way in PEERS else _ours)(way, test, Path(folder))
        if adversarial is not None:
            found |= accuracy.judge(ready.defense, test, adversarial, FLAGS.epsilon, FLAGS.draws)
        result["rows"].append({"way": way, **found})
        print(ratios.table(result["rows"]), flush=True)
        if FLAGS.out:
            write_atomically(FLAGS.out, json.dumps(result, indent=1) + "\n")


def _shown_flags() -> list[str]:
    names = ("model", "epsilon", "images", "draws", "peer_steps", "batch_size")
    ways = f"--ways={','.join(FLAGS.ways)}"
    data = ["--data_dir=DIR"] if FLAGS.data_dir else []
    return [*(f"--{name}={FLAGS[name].value}" for name in names), ways, *data]


def _check() -> None:
    for way in FLAGS.ways:
        suite, _, steps = way.partition(":")
        check_choice("ways", suite, [*OURS, *PEERS])
        if steps and (suite not in OURS or not steps.isdecimal()):
            raise InputError(f"ways: got {way!r}, expected a suite and its steps, as honest:100")
        if suite in PEERS and torch_or_none() is None:
            raise InputError(f"ways: got {way!r}, expected PyTorch to be installed (make torch)")
        if way == "autoattack" and importlib.util.find_spec("pyautoattack") is None:
            raise InputError(
                f"ways: got {way!r}, expected the package pyautoattack to be installed"
            )
    if FLAGS.out:
        check_output("out", FLAGS.out)


def _ours(way: str, test: pj.data.Dataset, folder: Path) -> tuple[dict[str, Any], Any]:
    """The command that a user types, without red flags, which no other way has: its cost, and the attacked images."""
    suite, _, steps = way.partition(":")
    chosen = [f"--steps={steps}"] if steps else []
    data = [f"--data_dir={FLAGS.data_dir}"] if FLAGS.data_dir else []
    command = [
        "experiments.evaluate", f"--suite={suite}", f"--model={FLAGS.model}", f"--images={len(test)}",
        f"--epsilon={FLAGS.epsilon}", f"--batch_size={FLAGS.batch_size}", "--noundefended", "--probe_images=0",
        "--save_adversarial", "--nocompilation_cache", "--noprogress", f"--workdir={folder / 'run'}", *data, *chosen,
    ]  # fmt: skip
    cost, _ = _timed(command, folder)
    if "failed" in cost:
        return cost, None
    results = json.loads((folder / "run" / "results.json").read_text())
    passes = sum(row["passes"][1] for row in results["rows"]["defended"])
    file = folder / "run" / "adversarial" / "defended" / "strongest.npz"
    return {**cost, "backward passes": passes}, saved.load(file, test.image_shape).adversarial


def _peer(way: str, test: pj.data.Dataset, folder: Path) -> tuple[dict[str, Any], Any]:
    images, labels = test.batch(np.arange(len(test)))
    np.savez(folder / "in.npz", images=images, labels=labels)
    command = [
        "benchmarks.peers.torch_attacks", f"--way={way}", f"--model={FLAGS.model}", f"--epsilon={FLAGS.epsilon}",
        f"--steps={FLAGS.peer_steps}", f"--batch_size={FLAGS.batch_size}", f"--images={folder / 'in.npz'}",
        f"--out={folder / 'out.npz'}",
    ]  # fmt: skip
    cost, said = _timed(command, folder)
    if "failed" in cost:
        return cost, None
    return {**cost, **child.found(said)}, np.load(folder / "out.npz")["adversarial"]


def _timed(command: list[str], folder: Path) -> tuple[dict[str, Any], str]:
    """Seconds and largest memory of a process, or the last line of one that failed; and its standard output."""
    variables = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as wrong:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=said, stderr=wrong, env=variables
        )
        while process.poll() is None:
            peak = max(peak, child.peak_bytes(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        said.seek(0), wrong.seek(0)
        if process.returncode:
            last = (wrong.read().splitlines() or [f"status {process.returncode}"])[-1]
            return {"failed": last[:200]}, ""
        return {"seconds": seconds, "megabytes": peak / 1e6}, said.read()


if __name__ == "__main__":
    cli.run(main)
