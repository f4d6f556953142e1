"""A card for people: README.md with the metadata that Hugging Face's hub reads, as YAML."""

import json
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from purify_jax.types import Json

#: Accuracy, the bounds of its interval, and the number of images.
Interval: TypeAlias = Sequence[float]

LIBRARY = "purify_jax"
TASK = "image-classification"
TAGS = ["jax", "flax", "adversarial-robustness", "adversarial-purification", "energy-based-model"]

_USE = """\
```python
import jax, purify_jax as pj

ready = pj.pretrained.load("THIS_FOLDER")  # or "hf:OWNER/NAME"
log_probabilities = pj.jit(ready.defense)(pj.image_keys(jax.random.key(0), range(n)), images)
```

`images`: float32 `[n, {height}, {width}, {channels}]` in [0, 1]; one key per image. `--model=THIS_FOLDER` in every \
command of purify_jax.
"""

_ACCURACY = (
    "With 95% intervals over images, beside the bare classifier under the same attack. Quote the lowest figure "
    "of the strongest attack."
)


def readme(card: Json, license: str | None = None) -> str:
    """The model card: metadata between lines of dashes, then what it is, how to use it and its figures."""
    data = str(card.get("data") or "images")
    height, width, channels = card["image_shape"]
    lines = [
        f"# Adversarial purification, {data}",
        "",
        "An energy-based (or score) model that cleans attacked images in a few steps along its score, "
        f"`{card['files']['score_model']['name']}`, and a classifier, `{card['files']['classifier']['name']}`. "
        f"{card.get('budget') or ''}".strip(),
        "",
        _USE.format(height=height, width=width, channels=channels),
    ]
    rows = list(_accuracies(card))
    if rows:
        lines += ["## Accuracy", "", _ACCURACY, ""]
        lines += ["| evaluation | what | undefended | purified | images |", "|---|---|---|---|---|"]
        for evaluation, what, bare, defended in rows:
            lines.append(
                f"| {_cell(evaluation)} | {what} | {_interval(bare)} | {_interval(defended)} | "
                f"{int(defended[3])} |"
            )
        lines.append("")
    if card.get("limits"):
        lines += ["## Limits", "", " ".join(str(card["limits"]).split()), ""]
    if card.get("training"):
        lines += ["## Training", "", *map(_training, card["training"].items()), ""]
    if card.get("purification"):
        block = json.dumps(card["purification"], indent=2)
        lines += ["## Purification", "", "```json", block, "```", ""]
    if card.get("commands"):
        lines += ["## How the figures were made", "", "```"]
        lines += [" ".join(str(c).split()) for c in card["commands"].values()]
        lines += ["```", ""]
    return "\n".join([_front_matter(_metadata(card, license)), *lines]).rstrip() + "\n"


def _metadata(card: Json, license: str | None) -> Json:
    """The hub's fields (huggingface.co/docs/hub/model-cards)."""
    data = card.get("data")
    found: dict[str, object] = {"license": license} if license else {}
    found |= {"library_name": LIBRARY, "pipeline_tag": TASK, "tags": TAGS}
    if data:
        found["datasets"] = [str(data)]
    results = [_result(str(data or "images"), *row) for row in _accuracies(card)]
    if results:
        found["metrics"] = ["accuracy"]
        found["model-index"] = [{"name": f"{LIBRARY}, {data or 'images'}", "results": results}]
    return found


def _result(
    data: str, evaluation: str, what: str, bare: Interval | None, defended: Interval
) -> Json:
    metric = lambda name, value: {"type": "accuracy", "name": name, "value": float(value[0])}
    return {
        "task": {"type": TASK},
        "dataset": {
            "type": data,
            "config": evaluation,
            "name": f"{data}, {evaluation}, {int(defended[3])} images",
        },
        "metrics": [
            metric(f"{what}, purified", defended),
            *([] if bare is None else [metric(f"{what}, undefended", bare)]),
        ],
    }


def _accuracies(card: Json) -> Iterator[tuple[str, str, Interval | None, Interval]]:
    """(evaluation, what, the bare classifier's interval or None, the defense's) of a card's figures."""
    for evaluation, found in card.get("evaluations", {}).items():
        kinds = {"clean": found["clean"]}
        if evaluation != "clean":
            kinds["union of attacks"] = found["union_accuracy"]
            averages = {model: f["average"] for model, f in found["summary"].items()}
            kinds["average of one answer"] = averages
        for what, models in kinds.items():
            if "defended" in models:
                yield evaluation, what, models.get("undefended"), models["defended"]


def _training(item: tuple[str, Json]) -> str:
    name, made = item
    command = " ".join(str(made["command"]).split())
    hours = "hours not recorded" if made.get("hours") is None else f"{made['hours']:.2g} h"
    note = f" {made['note']}" if made.get("note") else ""
    return f"- {name}: {hours}, {made['device']}, commit {made['commit']}: `{command}`.{note}"


def _interval(found: Interval | None) -> str:
    return "" if found is None else f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _front_matter(metadata: Json) -> str:
    """YAML, every value written as JSON, which is YAML too: quoted whatever a name holds."""
    lines = [f"{name}: {_indented(value)}" for name, value in metadata.items()]
    return "\n".join(["---", *lines, "---", ""])


def _indented(value: object) -> str:
    nested = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    return json.dumps(value, indent=2 if nested else None).replace("\n", "\n  ")
