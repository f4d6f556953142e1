"""pretrained/README.md: every network that ships, how it was trained, and its results."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from experiments.reproduction import defense_table, defenses
from experiments.reproduction.results import Result, hours, read

_HEAD = """\
# Models that ship

`pj.pretrained.load(NAME)` loads a pair, a purifier's network and a classifier, from its card `NAME.json`: data, every command
and commit, hours of training, results with intervals, limits. `--model=NAME` in every command. Single networks: `pj.load_model(FILE)`,
or `--score_model=FILE` and `--classifier=FILE`. All were trained on training images alone.
Made by `make tables`.

| name | data | what |
|---|---|---|"""

_NETWORKS = """\

## Networks of the CIFAR-10 defenses

Each was trained once, from seed 0, by `experiments.reproduce`; its record, with the command, is `results/cifar10_networks/NETWORK.json`. Hours are
those of two CPU cores.

| network | file | config | begins with | hours | commit |
|---|---|---|---|---|---|"""

_DEFENSES = """\

## CIFAR-10 defenses

Results are in percent on test images, with [95% intervals]; attacks reach Linf 8/255 unless another norm is named. Images and passes
are in docs/results.md."""


def page(results: Path, shipped: Path) -> str:
    """The Markdown, from the cards in ``shipped`` and what ``results`` has of the defenses and their networks."""
    lines = [_HEAD]
    lines += [
        f"| `{name}` | {card['data']} | {_about(card)} |" for name, card in read(shipped).items()
    ]
    lines += [_NETWORKS, *_networks(results / defenses.RECORDS), _DEFENSES]
    for name in defenses.DEFENSES:
        lines += _defense(name, read(results / name))
    return "\n".join(lines) + "\n"


def _about(card: Result) -> str:
    about = card["budget"].removeprefix("full plan").strip(".; ")
    return f"{_files(file['name'] for file in card['files'].values())}. {about}."


def _files(names: Iterator[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _networks(records: Path) -> Iterator[str]:
    for name, made in defenses.NETWORKS.items():
        record = records / f"{name}.json"
        if not record.is_file():
            continue
        found = json.loads(record.read_text())
        taken = hours(found)
        cells = (
            name, _files(iter(made.shipped.values())), f"`{made.config}`", ", ".join(made.given.values()),
            "not recorded" if taken is None else f"{taken:.2g}", found["commit"],
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _defense(name: str, parts: Mapping[str, Result]) -> Iterator[str]:
    recipe = defenses.DEFENSES[name]
    plan = defenses.plan(name, None, Path("runs") / name, None)
    shipped = {part.folder / file: n for part in plan.parts for file, n in part.shipped.items()}
    classifier = f"`{shipped[plan.classifier]}`"
    used = f"The classifier alone: {classifier}."
    if plan.score_model is not None:
        how = " ".join(recipe.flags())
        flags = f", with `{how}`" if how else ""
        used = f"Purifier `{shipped[plan.score_model]}`, classifier {classifier}{flags}."
    yield ""
    yield f"**{recipe.name}: {recipe.about}** (`--suite={name}`). {used}"
    if found := defense_table.measured(parts):
        yield f"- Results in percent: {found}."
    yield f"- Limits: {recipe.limits}"
