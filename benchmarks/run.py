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

from benchmarks import (
    accuracy,
    diffusion,
    memory,
    networks,
    purification,
    ratios,
    startup,
    timing,
)
from benchmarks.networks import kernels
from benchmarks.settings import NETWORKS, PEERS, Settings, torch_or_none
from experiments.common import provenance
from purify_jax.atomic import check_output, write_atomically
from purify_jax.checks import InputError
from purify_jax.models import pretrained
from purify_jax.models.versions import versions
from purify_jax.networks import NCSNv2, ShuffledUNet, WhitenedConvNet, WideResNet
from purify_jax.networks.fields import check_fields
from purify_jax.reporting import report

SECTIONS: dict[str, Callable[[Settings], list[dict[str, Any]]]] = {
    "networks": networks.measure,
    "kernels": kernels.measure,
    "purification": purification.purify,
    "gradients": purification.gradients,
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
        "small_batch",
        "repeats",
    ):
        parser.add_argument(f"--{name}", type=_positive, default=getattr(defaults, name))
    parser.add_argument("--depth", type=_positive, default=defaults.depth, help="of the WideResNet")
    parser.add_argument("--width", type=_positive, default=defaults.width, help="of the WideResNet")
    for name, what in (("convnet_features", "WhitenedConvNet"), ("unet_features", "ShuffledUNet")):
        parser.add_argument(
            f"--{name}",
            type=_positive,
            nargs=3,
            default=getattr(defaults, name),
            help=f"of the {what}",
        )
    parser.add_argument(
        "--networks", type=_some_of(NETWORKS), default=NETWORKS, help=_any(NETWORKS)
    )
    parser.add_argument("--peers", type=_some_of(PEERS), default=PEERS, help=_any(PEERS))
    parser.add_argument("--bfloat16", action="store_true", default=defaults.bfloat16)
    options = parser.parse_args()
    try:
        _check(options)
    except InputError as error:
        parser.error(str(error))
    fields = {k: v for k, v in vars(options).items() if k in Settings.__dataclass_fields__}
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    settings = Settings(**chosen)
    torch = torch_or_none()
    print(f"on {_processor()}", flush=True)
    peers = _peers(settings)
    result: dict[str, Any] = {
        "command": provenance.shown(["benchmarks.run", *sys.argv[1:]], options.data_dir),
        "commit": provenance.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "settings": chosen,
        "versions": {**versions(), "torch": torch.__version__ if torch else None},
        "processor": _processor(),
        "peers": peers,
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
        if lines := ratios.summary(rows):
            print(f"\n{lines}", flush=True)
        if options.out:
            write_atomically(options.out, json.dumps(result, indent=1) + "\n")


def state_shares(result: dict[str, Any]) -> None:
    """Sets the share of the measured float32 peak in every row of float32 work."""
    for row in (row for rows in result["sections"].values() for row in rows):
        if "flops_per_s" in row and "bfloat16" not in row["code"]:
            row["share_of_peak"] = row["flops_per_s"] / result["matmul_peak_flops_per_s"]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text; a column for every key that some row has.

    Ranges and the ratios to each PyTorch variant are left to the JSON.
    """
    hidden = lambda key: key.endswith("_range") or key.startswith("ratio to ")
    columns = list(dict.fromkeys(k for row in rows for k in row if not hidden(k)))
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
    check_fields(WhitenedConvNet, {"features": tuple(options.convnet_features)})
    check_fields(ShuffledUNet, {"features": tuple(options.unet_features)})
    needs_data = sorted(set(options.models) - {"digits", "digits_best"})
    if "accuracy" in options.sections and needs_data and options.data_dir is None:
        raise InputError(f"data_dir: not given, expected the folder of data for {needs_data}")
    if options.data_dir is not None and not Path(options.data_dir).is_dir():
        raise InputError(f"data_dir: {options.data_dir} is not a folder")
    if options.out is not None:
        check_output("out", options.out)


def _peers(settings: Settings) -> dict[str, Any]:
    """Which PyTorch variants are measured and why the others are not, a line for each problem."""
    if (torch := torch_or_none()) is None:
        return {"measured": [], "left_out": {"torch": "not installed"}}
    from benchmarks.peers import variants

    found, left_out = variants.choose(settings.peers, settings.torch_device(torch))
    for problem in sorted(set(left_out.values()) - {variants.NOT_CHOSEN}):
        concerned = [label for label, reason in left_out.items() if reason == problem]
        print(f"left out: {'; '.join(concerned)}: {problem}", file=sys.stderr, flush=True)
    return {"measured": [variant.label for variant in found], "left_out": left_out}


def _some_of(names: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """A flag's type: names separated by commas, each once; "none" for none of them."""

    def parse(text: str) -> tuple[str, ...]:
        given = () if text == "none" else tuple(text.split(","))
        if not set(given) <= set(names) or len(set(given)) < len(given):
            raise argparse.ArgumentTypeError(f"got {text}, expected {_any(names)}")
        return given

    return parse


def _any(names: tuple[str, ...]) -> str:
    return f"any of {','.join(names)} (commas between them), or none"


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
