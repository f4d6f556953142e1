"""Measures everything on whatever device JAX finds, against PyTorch in the same run if installed.

python -m benchmarks.run [--sections network purification ...] [--out benchmarks/results/NAME.json]

Prints a table per section and writes JSON after each, so that a run cut short keeps what it has.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks import accuracy, diffusion, memory, networks, purification, startup, timing
from benchmarks.settings import Settings, torch_or_none
from experiments.common import provenance
from purify_jax.atomic import check_output, write_atomically
from purify_jax.checks import InputError
from purify_jax.models import pretrained
from purify_jax.models.versions import versions
from purify_jax.networks import NCSNv2, WideResNet
from purify_jax.networks.fields import check_fields
from purify_jax.reporting import report

SECTIONS: dict[str, Callable[[Settings], list[dict[str, Any]]]] = {
    "network": networks.forward_and_gradient,
    "purification": purification.purify,
    "gradients": purification.gradients,
    "training": networks.dsm_training,
    "memory": memory.measure,
    "diffusion": diffusion.measure,
    "adm": diffusion.published_adm,
    "startup": startup.measure,
}
#: Sizes that fill a GPU; the defaults of ``Settings`` fit two CPU cores.
GPU = {
    "images": 16, "eot": 4, "network_batch": 64, "train_batch": 128, "repeats": 5, "bfloat16": True,
}  # fmt: skip


def main() -> None:
    """Flags in, tables and JSON out."""
    on_gpu = jax.default_backend() != "cpu"
    defaults = Settings(**(GPU if on_gpu else {}))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--sections", nargs="+", choices=[*SECTIONS, "accuracy"], default=[*SECTIONS, "accuracy"]
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--models", nargs="+", choices=pretrained.available(), default=["digits"])
    parser.add_argument("--accuracy_images", type=_positive, default=360)
    parser.add_argument("--data_dir", help="prepared TFDS data, for --models other than digits")
    for name in (
        "features",
        "images",
        "eot",
        "attack_restarts",
        "network_batch",
        "train_batch",
        "repeats",
    ):
        parser.add_argument(f"--{name}", type=_positive, default=getattr(defaults, name))
    parser.add_argument("--depth", type=_positive, default=defaults.depth, help="of the WideResNet")
    parser.add_argument("--width", type=_positive, default=defaults.width, help="of the WideResNet")
    parser.add_argument("--bfloat16", action="store_true", default=defaults.bfloat16)
    options = parser.parse_args()
    try:
        _check(options)
    except InputError as error:
        parser.error(str(error))
    chosen = {k: v for k, v in vars(options).items() if k in Settings.__dataclass_fields__}
    settings = Settings(**chosen)
    torch = torch_or_none()
    print(f"on {_processor()}", flush=True)
    result: dict[str, Any] = {
        "command": provenance.shown(["benchmarks.run", *sys.argv[1:]], options.data_dir),
        "commit": provenance.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "settings": chosen,
        "versions": {**versions(), "torch": torch.__version__ if torch else None},
        "processor": _processor(),
        "matmul_peak_flops_per_s": timing.matmul_peak(),
        "sections": {},
    }
    for name in options.sections:
        started = time.perf_counter()
        if name == "accuracy":
            rows = accuracy.measure(options.models, options.accuracy_images, options.data_dir)
        else:
            rows = SECTIONS[name](settings)
        result["sections"][name] = rows
        # Shared machines have slow minutes: the peak is the best of several measurements.
        result["matmul_peak_flops_per_s"] = max(
            result["matmul_peak_flops_per_s"], timing.matmul_peak()
        )
        state_shares(result)
        print(f"\n## {name} ({time.perf_counter() - started:.0f} s)\n{table(rows)}", flush=True)
        if options.out:
            write_atomically(options.out, json.dumps(result, indent=1) + "\n")


def state_shares(result: dict[str, Any]) -> None:
    """Sets the share of the measured float32 peak in every row of float32 work."""
    for row in (row for rows in result["sections"].values() for row in rows):
        if "flops_per_s" in row and "bfloat16" not in row["code"]:
            row["share_of_peak"] = row["flops_per_s"] / result["matmul_peak_flops_per_s"]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text; a column for every key that some row has, ranges left to the JSON."""
    columns = list(dict.fromkeys(k for row in rows for k in row if not k.endswith("_range")))
    return report.text_table(columns, [[_cell(row.get(c)) for c in columns] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "[" + ", ".join(f"{v:.3g}" for v in value) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _check(options: argparse.Namespace) -> None:
    """Raises InputError before hours of measuring, not after."""
    for name in ("sections", "models"):
        given = getattr(options, name)
        if len(set(given)) < len(given):
            raise InputError(f"{name}: got {' '.join(given)}, expected each of them once")
    if options.depth < 10 or options.depth % 6 != 4:
        raise InputError(f"depth: got {options.depth}, expected 10, 16, 22, 28, ... (6n + 4)")
    check_fields(NCSNv2, {"features": options.features})
    check_fields(WideResNet, {"depth": options.depth, "width": options.width})
    needs_data = sorted(set(options.models) - {"digits", "digits_best"})
    if "accuracy" in options.sections and needs_data and options.data_dir is None:
        raise InputError(f"data_dir: not given, expected the folder of data for {needs_data}")
    if options.data_dir is not None and not Path(options.data_dir).is_dir():
        raise InputError(f"data_dir: {options.data_dir} is not a folder")
    if options.out is not None:
        check_output("out", options.out)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected at least 1")
    return number


def _processor() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else "cpu"


if __name__ == "__main__":
    main()
