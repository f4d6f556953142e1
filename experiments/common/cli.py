"""What all binaries share: one clear line for bad input, status 2 for bad usage, a cache of compiled programs."""

import errno
import hashlib
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

import purify_jax as pj
from experiments.common import helping, locks, usage
from purify_jax.atomic import SaveError
from purify_jax.checks import (
    InputError,
    check_count,
    check_epsilon,
    check_number,
    check_seed,
)

#: The configs that ship, wherever the command is run.
CONFIGS = Path(__file__).parents[1] / "configs"

flags.DEFINE_bool(
    "compilation_cache",
    True,
    "Keep compiled programs for the next run, under JAX_COMPILATION_CACHE_DIR or the user's cache.",
)
flags.DEFINE_string("coordinator", None, "host:port of process 0, for several processes.")
flags.DEFINE_bool(
    "distributed", False, "Join the processes of a TPU pod or cluster that JAX recognises."
)
flags.DEFINE_integer("num_processes", None, "How many processes work together.")
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def _use_compilation_cache() -> None:
    if not flags.FLAGS.compilation_cache:
        _configure("jax_enable_compilation_cache", False)
        return
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # A program compiled for one processor may not run on another that shares this folder.
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        processor = [line for line in lines if line.startswith(("model name", "flags"))][:2]
        digest = hashlib.sha256("".join([platform.machine(), *processor]).encode()).hexdigest()
        folder = base / "purify_jax" / f"xla-{digest[:12]}"
        _configure("jax_compilation_cache_dir", str(folder))
    _configure("jax_persistent_cache_min_compile_time_secs", 0.5)


def _configure(option: str, value: Any) -> None:
    """Sets a JAX option whether JAX is loaded already or will be loaded later."""
    os.environ[option.upper()] = str(value)
    if "jax" in sys.modules:
        sys.modules["jax"].config.update(option, value)


def run(main: Callable[[list[str]], None]) -> None:
    """Runs ``main`` under absl; bad input and a full disk end in one line and exit status 1, bad usage in 2.

    The last line says what was written where.
    """

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            fail_usage(f"arguments: got {' '.join(argv[1:])!r}, expected flags only")
        _use_compilation_cache()
        try:
            check_numbers()
            several = [flags.FLAGS[n].value for n in ("coordinator", "num_processes", "process_id")]
            if flags.FLAGS.distributed or any(value is not None for value in several):
                pj.sharding.initialize(*several)
            main(argv)
            for line in locks.endings():
                print(line, flush=True)
        except (InputError, SaveError) as error:
            fail(str(error), at_once=isinstance(error, SaveError))
        except BrokenPipeError:  # COMMAND | head
            helping.drop_output()
            fail("output: its reader is gone; what was written to files stays")
        except PermissionError as error:
            fail(f"file: no permission for {error.filename}")
        except OSError as error:
            place = error.filename2 or error.filename
            if error.errno in _FULL:
                fail(f"saving: {_FULL[error.errno]}; what was saved before is as it was")
            if place is None:
                raise
            fail(f"file: {place}: {error.strerror}")

    logging.set_verbosity(logging.WARNING)
    _leave_failed_saves_to_their_line()
    if helping.answer(sys.argv):
        sys.exit(0)
    sys.argv = _with_shipped_configs(sys.argv)
    app.run(guarded, flags_parser=_parsed)


_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be too large",
}


def _leave_failed_saves_to_their_line() -> None:
    """Drops the tracebacks that orbax's threads log for a failed checkpoint; SaveError reports it in one line."""
    is_no_page = lambda record: "orbax" not in record.pathname or not record.exc_info
    logging.get_absl_logger().addFilter(is_no_page)


def _parsed(arguments: list[str]) -> list[str]:
    """absl's parser, with one line for what it says of a flag, and for a config that cannot be read."""
    try:
        rest = flags.FLAGS(arguments)
        _refuse_empty_texts()
        return rest
    except flags.Error as error:
        fail_usage(usage.explained(str(error), flags.FLAGS))
    except Exception as error:  # a config file is a program, and may raise anything
        fail(f"config: {unreadable_config(error)}")


#: Flags of any binary that are whole numbers → the smallest.
_COUNTS: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "images", "batch_size", "num_steps", "num_restarts", "steps", "eot", "draws",
            "chain_steps", "calibration_images", "n0", "n", "samples_at_once",
            "diffusion_steps", "image_size", "head_channels", "eot_at_once", "surrogate_restarts",
        ),
        1,
    ),
    "probe_images": 0,
}  # fmt: skip
#: Flags that are numbers → their bounds.
_NUMBERS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("noise_scale", "rate", "epsilon"), (0.0, math.inf)),
    **dict.fromkeys(("fraction", "false_positive_rate"), (0.0, 1.0)),
}


def check_numbers() -> None:
    """Raises InputError that names the flag, before JAX is loaded, for a number out of range."""
    # --images of score is a file, that of other commands a number.
    numbers = (
        flag
        for flag in map(flags.FLAGS.__getitem__, flags.FLAGS)
        if flag.flag_type() in ("int", "float")
    )
    given = {flag.name: flag.value for flag in numbers if flag.value is not None}
    for name, least in _COUNTS.items():
        if name in given:
            check_count(name, given[name], least)
    for name, (low, high) in _NUMBERS.items():
        if name in given:
            check_number(name, given[name], low, high)
    if "epsilon" in given and "norm" in flags.FLAGS:
        check_epsilon(given["epsilon"], flags.FLAGS["norm"].value)
    if "seed" in given:
        check_seed(given["seed"])


def _refuse_empty_texts() -> None:
    """``--score_model=$FILE`` with FILE not set would silently be a run without one."""
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if flag.present and flag.flag_type() == "string" and flag.value == "":
            fail_usage(
                f"{name}: got an empty text, expected a value, or no --{name} for the default"
            )


def unreadable_config(error: Exception) -> str:
    """What is wrong with a config file or an override of it, in one line."""
    text = " ".join(str(error).split()) or "nothing said why"
    return (
        f"cannot be read ({type(error).__name__}: {text}), expected a Python file with get_config() "
        "or the name of a config that ships, and overrides of fields that it has"
    )


def _with_shipped_configs(arguments: list[str]) -> list[str]:
    """``--config=mnist`` and ``--config=experiments/configs/mnist.py`` name the config that ships.

    Any other path is left as it is, so that one that does not exist is an error.
    """
    changed = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        if changed and changed[-1] in ("--config", "-config"):
            flag, value = "", argument
        if flag in ("--config", "-config", "") and (found := _shipped_config(value)):
            changed.append(f"{flag}={found}" if flag else found)
        else:
            changed.append(argument)
    return changed


def _shipped_config(value: str) -> str | None:
    bare = re.fullmatch(r"(?:experiments/configs/)?(\w+)\.py|(\w+)", value)
    if bare is None or Path(value).is_file() or (bare[1] and "/" not in value):
        return None
    shipped = CONFIGS / f"{bare[1] or bare[2]}.py"
    return str(shipped) if shipped.is_file() else None


def fail_usage(message: str) -> NoReturn:
    """Ends the program with one line on standard error, which says how it is used, and status 2."""
    line = " ".join(message.split())
    print(
        f"error: {line} ({usage.line(flags.FLAGS)}; --help lists them)", file=sys.stderr, flush=True
    )
    sys.exit(2)


def fail(message: str, at_once: bool = False) -> NoReturn:
    """Ends the program with one line on standard error and status 1."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    # Orbax's threads would add pages about the interpreter's end, and other processes would wait.
    jax = sys.modules.get("jax")
    if at_once or (jax is not None and jax.distributed.is_initialized()):
        os._exit(1)
    sys.exit(1)
