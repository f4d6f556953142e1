"""Two flags of XLA that make programs faster on CPUs, and whether the installed jaxlib knows them.

XLA's flags are documented nowhere and change from release to release, and XLA ends a process that names one
it does not know. So a flag is set only if the installed jaxlib accepted it in a process of its own. It is
asked once for each version, and the answer is kept in the user's cache folder.

- Convolutions by Eigen in place of YNNPACK: 1.2 to 1.5 times as fast for small networks.
- LLVM's optimisation level 1 in place of 3: programs run as fast, and compile in less time.

Seconds of CPU time with jaxlib 0.10.2, two cores without AVX-512, without the flags → with both: to compile
exact PGD on digits 15.5 → 9.6; three training steps of the CIFAR-10 classifier 0.76 → 0.70; two input
gradients of the WhitenedConvNet in a loop 1.69 → 1.33. docs/performance_notes.md has more.

They are set in the environment variable XLA_FLAGS when this library is imported, so for child processes too,
where JAX sees nothing but x86-64 CPUs. A value that XLA_FLAGS has already stays, and
``PURIFY_JAX_XLA_FLAGS=off`` sets nothing. XLA reads the variable when it first compiles.
"""

import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

KERNELS = "--xla_cpu_experimental_ynn_fusion_type="
LEVEL = "--xla_backend_optimization_level=1"


def set_flags() -> None:
    """Adds the two flags to XLA_FLAGS, unless ``PURIFY_JAX_XLA_FLAGS`` is off; does not import JAX."""
    if os.environ.get("PURIFY_JAX_XLA_FLAGS") != "off" and _cpu_only():
        add([KERNELS, LEVEL])


def add(flags: Sequence[str]) -> None:
    """Adds to XLA_FLAGS those of ``flags`` that the installed jaxlib knows and that have no value there."""
    given = os.environ.get("XLA_FLAGS", "")
    if new := known([flag for flag in flags if flag.partition("=")[0] not in given]):
        os.environ["XLA_FLAGS"] = " ".join([given, *new]).strip()


def known(flags: Sequence[str]) -> list[str]:
    """Those of ``flags`` (``--name=value``) that the installed jaxlib accepts."""
    from importlib.metadata import PackageNotFoundError, version

    answers: dict[str, bool] = {}
    try:
        path = _cache() / f"xla_flags-{version('jaxlib')}-{platform.machine()}.json"
        answers = dict(json.loads(path.read_text()))
    except PackageNotFoundError:
        return []
    except (OSError, ValueError, TypeError):
        pass
    if new := [flag for flag in flags if flag not in answers]:
        answers |= _asked(new)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(f".{os.getpid()}")
            beside.write_text(json.dumps(answers))
            beside.replace(path)
    return [flag for flag in flags if answers.get(flag)]


def _asked(flags: Sequence[str]) -> dict[str, bool]:
    """Flag → whether a child process accepts it; without those whose child failed for another reason."""
    env = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return dict.fromkeys(flags, True)
    if len(flags) > 1:
        return {flag: answer for each in flags for flag, answer in _asked([each]).items()}
    return {flags[0]: False} if "Unknown flag" in done.stderr else {}


def _cpu_only() -> bool:
    """Whether this is an x86-64 CPU, and JAX is told to use CPUs or has no plugin for anything else."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    accelerators = [importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")]
    return os.environ.get("JAX_PLATFORMS") == "cpu" or not any(accelerators)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "purify_jax"
