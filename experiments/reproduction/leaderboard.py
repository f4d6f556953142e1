"""docs/leaderboard.md: what was claimed, the accuracy under exact gradients, and what this library measured.

Called by ``make tables``. Claims are as published, in percent, each with attack and source; rows of one defense
may use different classifiers. Measurements come from ``results/`` alone. A cell without a measurement is empty.
"""

from pathlib import Path

from experiments.reproduction.results import (
    Result,
    attacked,
    backward_passes,
    fraction,
    judged,
    percent,
    span,
    spared,
    summary,
)

_HEAD = """# Claimed against re-measured

Purification defenses on CIFAR-10 at Linf 8/255, accuracy in percent: as their authors claimed, and as others measured it later
with exact gradients. RobustBench lists no random defense, so the sources are papers.

| defense | clean | claimed | re-measured | worst of 10 |
|---|---:|---:|---:|---:|
| ADP (1) | 86.1 | 70.0 | 33.7 | – |
| DiffPure (2) | 89–90 | 70.6 | 42.5 | 22.7 |
| GDMP (3) | – | – | 41.6 | 27.5 |
| likelihood maximisation (4) | – | – | 16.2 | 8.0 |
| Langevin EBM (5) | – | 54.9 | 6.1 | – |

1. σ = 0.25 and WideResNet-28-10. Claimed under BPDA+EOT (Yoon et al. 2021), measured by APGD-CW with EOT 200 on 1000 images (Croce et
   al. 2022, arXiv 2202.13711), ± 0.5. ADP is adaptive denoising purification, BPDA backward pass differentiable approximation, EOT
   expectation over transformation.
2. Claimed under adjoint gradients (Nie et al. 2022), measured by DiffHammer on 512 images (NeurIPS 2024).
3. Wang et al. 2022, arXiv 2205.14969; measured by DiffHammer.
4. Chen et al. 2024, arXiv 2305.15241; measured by DiffHammer.
5. Both figures from MEFA, arXiv 2605.06357, with full gradients.

## Measured here

The suites `honest` and `paper` on this library's own models, with 95% intervals ([Suites and protocol](evaluation.md)). "Passes" are
backward passes for one image, through the purifier or through a classifier that has none. The published checkpoints are not
measured here yet: [they can be loaded](diffusion.md), and `honest` on them needs a GPU.

| model | threat | suite | clean | average | worst of 10 | passes |
|---|---|---|---:|---:|---:|---:|
"""

_END = """
A classifier without a purifier is not random: its worst of 10 is its average. Each row is a file of `results/`, which names its
command, commit, versions and images: {files}. Shortened attacks, which bound the accuracy from above: {shortened}.
"""


def page(results: Path) -> str:
    """The Markdown of docs/leaderboard.md."""
    found = list(attacked(results))
    rows = [_row(path, part) + "\n" for path, part in found]
    files = [f"`{path.parent.name}/{path.name}`" for path, _ in found]
    shortened = [
        f"`{path.parent.name}` under `{part['settings']['suite']}`{how}"
        for path, part in found
        if (how := spared(part))
    ]
    end = _END.format(files=", ".join(files), shortened="; ".join(shortened) or "none")
    return _HEAD + "".join(rows) + end


def _row(path: Path, part: Result) -> str:
    setting, found = part["settings"], summary(part)
    clean = part["rows"][judged(part["rows"])][0]["one_draw"]
    note = ", **red flags**" if part["red_flags"] else ""
    threat = f"{setting['norm']} {fraction(setting['epsilon'])}"
    cells = (
        path.parent.name, threat, setting["suite"] + note, percent(clean[0]),
        span(found["average"]), span(found["all_draws"]), f"{backward_passes(part):.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"
