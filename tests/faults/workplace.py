"""A folder with the smallest models and data that every binary can work with, and commands for them."""

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from purify_jax import models, networks
from tests.faults import harness
from tests.faults.harness import ROOT

PURIFICATION = {
    "method": "adp", "curvature": "secant", "rate": 0.3, "max_step": 1.0, "num_steps": 2,
    "noise_scale": 0.25, "num_restarts": 1, "stop_threshold": 0.0,
}  # fmt: skip
METADATA = {
    "dataset": "digits",
    "num_classes": 10,
    "purification": PURIFICATION,
    "training": {"scale": "per_variance", "sigma_min": 0.1, "sigma_max": 0.8},
}


class Workplace(NamedTuple):
    """Paths of what there is."""

    folder: Path
    score_model: Path
    classifier: Path
    images: Path
    adversarial: Path

    @property
    def models(self) -> tuple[str, str]:
        """--score_model and --classifier."""
        return f"--score_model={self.score_model}", f"--classifier={self.classifier}"


def make(folder: Path) -> Workplace:
    """Writes the models (not trained, which changes nothing here), three images and saved ones."""
    place = Workplace(
        folder,
        folder / "score_model.safetensors",
        folder / "classifier.safetensors",
        folder / "images",
        folder / "saved.npz",
    )
    for path, network, role in (
        (place.score_model, networks.MLP(features=(8,)), "energy"),
        (place.classifier, networks.ConvNet(features=(4,), hidden=8), "classifier"),
    ):
        variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
        models.save_model(path, models.Model(role, network, variables, (8, 8, 1), METADATA))
    place.images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(place.images / f"{index}.png")
    clean = pixels[..., None].astype(np.float32) / 255
    labels = np.arange(3, dtype=np.int32)
    np.savez(
        place.adversarial, adversarial=clean, labels=labels, clean=clean, epsilon=0.1, norm="linf"
    )
    return place


#: Reads results/ and writes the checkout's own pages.
TABLES = "experiments.reproduction.tables"
PAGES = ("README.md", "docs/results.md", "docs/gallery.md", "docs/why_exact_gradients.md")
#: What ``tables`` writes between markers; without it a page is one that has to be written again.
_ALTERED = re.compile(r"(<!-- \w+: \w+ -->\n).*?(?=<!-- end -->)", re.DOTALL)
#: Binaries that write into a folder of their own.
BINARIES = (
    "train_ebm", "train_classifier", "train_defense", "evaluate", "detect", "certify", "corruptions",
    "compare", "denoise", "purify", "score", "export", "import_weights", "reproduce",
    "experiments.reproduction.exchange",
)  # fmt: skip

_TRAIN = ("steps=40", "steps_per_dispatch=5", "checkpoint_every=10", "batch_size=16")
#: Purifies by few steps, attacks few images: each a second or two.
_FEW = ("--images=4", "--batch_size=2", "--noprogress")


def start(name: str, place: Workplace, out: Path, **faults: object) -> harness.Running:
    """Starts a binary that writes into ``out``.

    reproduce keeps its folders in what it writes: it works inside ``out``, so that they are the same.
    """
    cwd = ROOT if name not in ("reproduce", TABLES) else out
    if name == TABLES:
        faults["checkout"] = out
    return harness.start(name, *commands(place, out)[name], cwd=cwd, **faults)


def commands(place: Workplace, out: Path) -> dict[str, list[str]]:
    """Binary → its flags for a run of a second or two that writes into ``out``."""
    both, workdir = list(place.models), f"--workdir={out}"
    train = lambda section: [*(f"--config.{section}.{s}" for s in _TRAIN), workdir, "--noprogress"]
    return {
        "train_ebm": [*train("ebm"), "--config.ebm.network.features=(8,)"],
        "train_classifier": [*train("classifier"), "--config.classifier.network.hidden=8"],
        "train_defense": [
            "--config=digits_defense", *train("defense"), *both, "--config.defense.probe_images=16",
            "--config.defense.probe_steps=2",
        ],
        "evaluate": [
            *both, *_FEW, "--suite=honest", "--epsilon=0.15", "--steps=2", "--eot=2", "--draws=2",
            "--probe_images=4", "--save_adversarial", "--save_images", workdir,
        ],
        "detect": [
            *both, *_FEW, "--calibration_images=20", "--epsilon=0.15", "--steps=2", "--eot=2", workdir,
        ],
        "certify": [*both, *_FEW, "--n0=5", "--n=20", "--samples_at_once=10", workdir],
        "corruptions": [*both, *_FEW, "--corruptions=fog,contrast", workdir],
        "compare": [
            *both, *_FEW, "--only=none,ADP", "--epsilon=0.15", "--steps=2", "--eot=2", "--draws=1",
            workdir,
        ],
        "denoise": [f"--score_model={place.score_model}", "--images=4", "--sigmas=0.1,0.5", workdir],
        "purify": [f"--score_model={place.score_model}", f"--input={place.images}", "--batch_size=1", workdir],
        "score": [*both, f"--images={place.adversarial}", "--draws=3", workdir],
        "export": [*both, f"--output={out / 'defense.jax'}"],
        "import_weights": [
            "--kind=ncsnv2", f"--source={ROOT / 'tests/golden/ncsnv2_ngf8_28x28x1.npz'}", "--quiet",
            "--image_shape=28,28,1", f"--out={out / 'model.safetensors'}",
        ],
        "reproduce": [
            "--suite=digits", "--budget=0.3", "--parts=certification", "--workdir=runs",
            "--results=results", "--noprogress",
        ],
        "experiments.reproduction.exchange": [f"--out={out}"],
        TABLES: [],
        "quickstart": [
            *train("ebm"), *train("classifier")[:-2], "--config.ebm.network.features=(8,)",
            "--config.classifier.network.hidden=8", "--images=4", "--steps=2", "--eot=2",
        ],
    }  # fmt: skip


def prepare(name: str, place: Workplace, out: Path) -> Path:
    """Makes the folder that a binary writes into, with what it expects there; returns it.

    reproduce: the networks of the part before the one that it runs. tables: a checkout that holds no more
    than it needs, with pages that differ from what results/ says.
    """
    out.mkdir(parents=True, exist_ok=True)
    if name == "reproduce":
        demo = out / "runs" / "demo"
        demo.mkdir(parents=True)
        (out / "results").mkdir(exist_ok=True)
        shutil.copy(place.score_model, demo)
        shutil.copy(place.classifier, demo)
    elif name == TABLES:
        for part in ("experiments", "results"):
            shutil.copytree(ROOT / part, out / part)
        (out / "docs").mkdir()
        for page in PAGES:
            (out / page).write_text(_ALTERED.sub(r"\1", (ROOT / page).read_text()))
    return out


#: Fields that say how long something took, or when and where: they differ between equal runs.
_TIMES = ("seconds", "milliseconds", "commit")


def content(folder: Path) -> dict[str, bytes]:
    """Path → bytes of what a run leaves, without times, checkpoints, pages and figures of them."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if "checkpoints/" in name or path.suffix == ".html" or name.endswith("against_cost.png"):
            found[name.split("checkpoints/")[0] + path.suffix] = b"there"
        elif path.suffix == ".json":
            found[name] = json.dumps(_timeless(json.loads(path.read_text()))).encode()
        else:
            found[name] = path.read_bytes()
    return found


def _timeless(value):
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in _TIMES}
    return [_timeless(v) for v in value] if isinstance(value, list) else value
