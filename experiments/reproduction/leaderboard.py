"""docs/leaderboard.md: what was claimed, the accuracy under exact gradients, and what this library measured.

Called by ``make tables``. Claims are as published, in percent, each with attack and source; rows of one defense
may use different classifiers. Measurements come from ``results/`` alone. A cell without a measurement is empty.
"""

from pathlib import Path

from experiments.reproduction.results import Result, attacked, judged, span, spent, summary

_HEAD = """# Claimed against re-measured

Purification defenses, as claimed and as later attacked by others, and what this library measured. Made
by `make tables`; RobustBench lists no randomised defense, so the sources of what is claimed are papers (* not peer reviewed). An entry
"measured here" names its file in `results/`, which holds command, commit, versions and the passes it took.
Nothing is measured here on the published CIFAR-10 checkpoints yet: `experiments.import_weights` loads them
([diffusion.md](diffusion.md)), and running `evaluate --suite=honest` on them needs a GPU.

## Published, CIFAR-10, Linf 8/255

| defense | clean | claimed | by | later, under exact gradients | by |
|---|---|---|---|---|---|
| ADP, σ = 0.25, WideResNet-28-10 | 86.14 | 70.01 | BPDA+EOT (Yoon et al. 2021) | 33.7 ± 0.5 | APGD-CW, EOT 200, 1000 images (Croce et al. 2022, arXiv 2202.13711) |
| DiffPure | 89-90 | 70.64 | adjoint gradients, AutoAttack (Nie et al. 2022) | 42.5; worst of 10: 22.7 | DiffHammer, 512 images (NeurIPS 2024) |
| GDMP (Wang et al. 2022, arXiv 2205.14969) |  |  |  | 41.6; worst of 10: 27.5 | DiffHammer, 512 images (NeurIPS 2024) |
| likelihood maximisation (LM; Chen et al. 2024, arXiv 2305.15241) |  |  |  | 16.2; worst of 10: 8.0 | DiffHammer, 512 images (NeurIPS 2024) |
| ScoreOpt | 93.75 | 59-66 | PGD+EOT (Zhang et al., NeurIPS 2023) | 22.07* | exact PGD+EOT, 512 images; source not recorded |
| ADBM (Li et al. 2024, arXiv 2408.00315) | 91.9 |  |  | 47.7* | exact gradients, 512 images; source not recorded |
| ADDT (Liu et al. 2024, arXiv 2404.14309) | 89.9 |  |  | 55.8* | exact gradients, 512 images; source not recorded |
| a Langevin-EBM defense |  | 54.9 | as published | 6.1 | full gradients (MEFA, arXiv 2605.06357) |

## Measured here

`honest` and `paper` on this library's own models; the average over fresh draws and the worst of N of each
image's strongest candidate ([evaluation.md](evaluation.md)), 95% intervals; backward passes through the purifier, or
through a classifier that has none.

| model | norm, ε | suite | images | clean | average | worst of N | backward passes | file |
|---|---|---|---|---|---|---|---|---|
"""


def page(results: Path) -> str:
    """The Markdown of docs/leaderboard.md."""
    rows = [_row(path, part) + "\n" for path, part in attacked(results)]
    return _HEAD + "".join(rows)


def _row(path: Path, part: Result) -> str:
    setting, found = part["settings"], summary(part)
    clean = part["rows"][judged(part["rows"])][0]["one_draw"]
    note = ", **red flags**" if part["red_flags"] else ""
    cells = (
        path.parent.name, f"{setting['norm']} {setting['epsilon']:.3g}", setting["suite"] + note, clean[3],
        span(clean), span(found["average"]), f"{found['draws']}: {span(found['all_draws'])}",
        spent(part, unit=""), f"`results/{path.parent.name}/{path.name}`",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"
