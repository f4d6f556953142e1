"""pretrained/README.md: every network that ships, who trained it how long on what, and where it is judged."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.reproduction import row_table, rows
from experiments.reproduction.figures import hours, read

_HEAD = """\
# Models that ship

`pj.pretrained.load(NAME)` loads a pair, a purifier's network and a classifier, from its card `NAME.json`: data, every command
and commit, hours of training, figures with intervals, limits. `--model=NAME` in every command. Single networks: `pj.load_model(FILE)`,
or `--ebm=FILE` and `--classifier=FILE`. All were trained on training images alone. Made by `make tables`.

| name | data | what |
|---|---|---|"""

_NETWORKS = """\

## Networks of the rows of CIFAR-10

Each was trained once, from seed 0, by `experiments.reproduce`; its record, with the command, is `results/cifar10_networks/NETWORK.json`. Hours are
those of two CPU cores.

| network | file | config | begins with | hours | commit |
|---|---|---|---|---|---|"""

_ROWS = """\

## Rows of CIFAR-10

Figures are on test images, the images in brackets, [95% intervals]; attacks reach Linf 8/255 unless another ball is named."""


def page(results: Path, shipped: Path) -> str:
    """The Markdown, from the cards in ``shipped`` and what ``results`` has of the rows and their networks."""
    cards = {path.stem: json.loads(path.read_text()) for path in sorted(shipped.glob("*.json"))}
    lines = [_HEAD]
    lines += [f"| `{name}` | {card['data']} | {_about(card)} |" for name, card in cards.items()]
    lines.append(_NETWORKS)
    lines += _networks(results / rows.RECORDS)
    lines.append(_ROWS)
    for name, row in rows.ROWS.items():
        lines += _row(name, row, read(results / name))
    return "\n".join(lines) + "\n"


def _about(card: Any) -> str:
    files = " and ".join(f"`{file['name']}`" for file in card["files"].values())
    about = card["budget"].removeprefix("full plan").strip(".; ")
    return f"{files}. {about}."


def _networks(records: Path) -> Iterator[str]:
    plans = [rows.plan(name, None, Path("runs") / name, None) for name in rows.ROWS]
    trainings = {p.name: p for plan in plans for p in plan.parts if p.is_training}
    for name in rows.NETWORKS:
        record, made = records / f"{name}.json", rows.NETWORKS[name]
        if not record.is_file():
            continue
        found = json.loads(record.read_text())
        taken = hours(found)
        files = " and ".join(f"`{file}`" for file in trainings[name].shipped.values())
        given = ", ".join(made.given.values())
        shown = "not recorded" if taken is None else f"{taken:.2g}"
        yield f"| {name} | {files} | `{made.config}` | {given} | {shown} | {found['commit']} |"


def _row(name: str, row: rows.Row, parts: Any) -> Iterator[str]:
    plan = rows.plan(name, None, Path("runs") / name, None)
    shipped = {part.folder / file: n for part in plan.parts for file, n in part.shipped.items()}
    pair = [shipped[path] for path in (plan.ebm, plan.classifier) if path is not None]
    how = " ".join(rows.NETWORKS[row.classifier].purification())
    yield ""
    yield f"**{row.note.removeprefix('Row ').rstrip('.')}** (`--suite={name}`). {_use(pair, how)}"
    figures = row_table.figures(row.note, parts)
    if figures:
        yield f"- Figures: {'; '.join(f'{what} {figure}' for what, figure in figures.items())}."
    yield f"- Limits: {row.limits}"


def _use(pair: list[str], how: str) -> str:
    names = [f"`{name}`" for name in pair]
    if len(names) == 1:
        return f"The classifier alone: {names[0]}."
    flags = f", with `{how}`" if how else ""
    return f"Purifier {names[0]}, classifier {names[1]}{flags}."
