"""Measures everything on whatever device JAX finds, against PyTorch in the same run if installed.

python -m benchmarks.run [--sections=networks,purification] [--out=benchmarks/results/NAME.json]

Prints a table per section and writes JSON after each, so that a run cut short keeps what it has.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks import accuracy, diffusion, memory, networks, purification, ratios, startup, timing
from benchmarks.networks import kernels
from benchmarks.settings import NETWORKS, PEERS, Settings, torch_or_none
from experiments.common import cli, flagging, provenance
from purify_jax.atomic import check_output, write_atomically
from purify_jax.checks import InputError, check_choice
from purify_jax.models import pretrained
from purify_jax.models.versions import versions
from purify_jax.networks import NCSNv2, ShuffledUNet, WhitenedConvNet, WideResNet
from purify_jax.networks.fields import check_fields

Rows = list[dict[str, Any]]
SECTIONS: dict[str, Callable[[Settings], Rows]] = {
    "networks": networks.measure,
    "kernels": kernels.measure,
    "purification": purification.purify,
    "gradients": purification.gradients,
    "memory": memory.measure,
    "diffusion": diffusion.measure,
    "adm": diffusion.published_adm,
    "startup": startup.measure,
    "accuracy": accuracy.measure,
}
#: Sizes that fill a GPU; the defaults of ``Settings`` fit two CPU cores.
GPU = {
    "images": 16, "eot": 4, "network_batch": 64, "train_batch": 128, "repeats": 5, "bfloat16": True,
}  # fmt: skip
#: Lists of names → what they may hold.
NAMES = {
    "sections": list(SECTIONS),
    "models": pretrained.available(),
    "networks": NETWORKS,
    "peers": PEERS,
}

flags.DEFINE_list("sections", NAMES["sections"], "What is measured.")
flags.DEFINE_string("out", None, "JSON file to write.")
FLAGS = flags.FLAGS


def _define(field: dataclasses.Field) -> None:
    """A flag for a field of the settings; the default may depend on the device, so it is not the flag's."""
    default = field.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    about = f"Default on a CPU: {shown}."
    if isinstance(default, bool):
        flags.DEFINE_bool(field.name, None, about)
    elif isinstance(default, int):
        flags.DEFINE_integer(field.name, None, about, lower_bound=1)
    elif isinstance(default, tuple):
        flags.DEFINE_list(field.name, None, about)
    else:
        flags.DEFINE_string(field.name, None, "Folder of prepared data, for models but digits.")


for _field in dataclasses.fields(Settings):
    _define(_field)


def main(argv: list[str]) -> None:
    """Flags in, tables and JSON out."""
    del argv
    settings = _settings()
    torch = torch_or_none()
    print(f"on {_processor()}", flush=True)
    result: dict[str, Any] = {
        "command": provenance.shown(["benchmarks.run", *sys.argv[1:]], settings.data_dir),
        "commit": provenance.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "settings": provenance.without_paths(dataclasses.asdict(settings)),
        "versions": {**versions(), "torch": torch.__version__ if torch else None},
        "processor": _processor(),
        "peers": _peers(settings),
        "matmul_peak_flops_per_s": timing.matmul_peak(),
        "sections": {},
    }
    for name in FLAGS.sections:
        started = time.perf_counter()
        rows = SECTIONS[name](settings)
        result["sections"][name] = rows
        # Shared machines have slow minutes: the peak is the best of several measurements.
        result["matmul_peak_flops_per_s"] = max(
            result["matmul_peak_flops_per_s"], timing.matmul_peak()
        )
        ratios.state_shares(result)
        print(
            f"\n## {name} ({time.perf_counter() - started:.0f} s)\n{ratios.table(rows)}", flush=True
        )
        if lines := ratios.summary(rows):
            print(f"\n{lines}", flush=True)
        if FLAGS.out:
            write_atomically(FLAGS.out, json.dumps(result, indent=1) + "\n")


def _settings() -> Settings:
    """The flags, or what suits the device; InputError before hours of measuring, not after."""
    _names("sections", FLAGS.sections)
    given: dict[str, Any] = dict(GPU) if jax.default_backend() != "cpu" else {}
    for field in dataclasses.fields(Settings):
        value = FLAGS[field.name].value
        if field.name in NAMES and value is not None:
            value = _names(field.name, value)
        elif isinstance(value, list):
            value = tuple(_whole(field.name, each) for each in value)
        given |= {} if value is None else {field.name: value}
    settings = Settings(**given)
    if settings.depth < 10 or settings.depth % 6 != 4:
        raise InputError(f"depth: got {settings.depth}, expected 10, 16, 22, 28, ... (6n + 4)")
    check_fields(NCSNv2, {"features": settings.features})
    check_fields(WideResNet, {"depth": settings.depth, "width": settings.width})
    check_fields(WhitenedConvNet, {"features": settings.convnet_features})
    check_fields(ShuffledUNet, {"features": settings.unet_features})
    needs_data = sorted(set(settings.models) - {"digits", "digits_best"})
    if "accuracy" in FLAGS.sections and needs_data and settings.data_dir is None:
        raise InputError(f"data_dir: not given, expected the folder of data for {needs_data}")
    if settings.data_dir is not None and not Path(settings.data_dir).is_dir():
        raise InputError(f"data_dir: {settings.data_dir} is not a folder")
    if FLAGS.out is not None:
        check_output("out", FLAGS.out)
    return settings


def _names(flag: str, given: Sequence[str]) -> tuple[str, ...]:
    """The names of a list flag; "none" for none of the networks or peers."""
    if list(given) == ["none"] and flag in ("networks", "peers"):
        return ()
    flagging.check_chosen(flag)
    for name in given:
        check_choice(flag, name, NAMES[flag])
    return tuple(given)


def _whole(flag: str, text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{flag}: got {text!r}, expected whole numbers with commas between them")
    return int(text)


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


def _processor() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else "cpu"


if __name__ == "__main__":
    FLAGS.set_default("compilation_cache", False)  # compiling is a part of what is measured
    cli.run(main)
