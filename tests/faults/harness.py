"""Binaries in processes of their own that start in milliseconds, and the faults that befall them.

A server imports the libraries once and forks; what runs in a fork is the binary itself, from its flags
to its exit status, and can be killed like any process.
"""

import atexit
import ctypes
import multiprocessing
import os
import re
import runpy
import signal
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
#: Everything but the binaries themselves, which define their flags when they are imported.
_PRELOADED = [
    "purify_jax", "jax.export", "orbax.checkpoint", "matplotlib.pyplot", "sklearn.datasets", "tqdm",
    "experiments.common.cli", "experiments.common.flagging", "experiments.common.loading",
    "experiments.common.from_config", "experiments.common.locks", "purify_jax.reporting",
]  # fmt: skip


#: What tensorstore prints of arrays whose checkpoint has failed already, past every hook of Python.
_LATE_WRITES = re.compile(
    r"Traceback \(most recent call last\):\n(  File [^\n]*asyncio/base_events.py[^\n]*\n( {4}[^\n]*\n)*)*"
)


class Done(NamedTuple):
    """How a process ended; ``code`` is minus the signal that ended it, ``hung`` if that took too long."""

    code: int
    out: str
    err: str
    seconds: float
    hung: bool = False

    @property
    def outcome(self) -> str:
        """accepted, refused (status 1 or 2 and one error line), hang, killed, or what should not be."""
        if self.hung:
            return "hang"
        if "Traceback (most recent call last)" in _LATE_WRITES.sub("", self.err):
            return "traceback"
        if self.code < 0:
            return "killed"
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.code == 0:
            return "accepted"
        return "refused" if self.code in (1, 2) and len(lines) == 1 else "unclear"

    @property
    def line(self) -> str:
        """The error line, or what there is of the rest."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return lines[-1] if lines else self.err[-300:]


def start(name: str, *arguments: object, cwd: str | Path = ROOT, **faults: object) -> "Running":
    """Starts ``python -m experiments.NAME`` (or a module by its full name); see :func:`_apply`."""
    module = name if "." in name else f"experiments.{name}"
    return Running(module, [str(a) for a in arguments], Path(cwd), faults)


def run(name: str, *arguments: object, timeout: float = 120, **more: object) -> Done:
    """Runs a binary to its end, or kills it after ``timeout`` seconds."""
    return start(name, *arguments, **more).wait(timeout)


def environment() -> dict[str, str]:
    """CPU only, programs compiled once for all tests, and this checkout for what a binary starts."""
    if "PURIFY_TEST_CACHE" not in os.environ:
        os.environ["PURIFY_TEST_CACHE"] = tempfile.mkdtemp(prefix="purify_jax_xla_")
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": os.environ["PURIFY_TEST_CACHE"],
        "PYTHONPATH": str(ROOT),
    }


class Running:
    """A binary that runs; :meth:`kill` and :meth:`wait` end it."""

    def __init__(self, module: str, arguments: list[str], cwd: Path, faults: dict):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        pipes = [context.Pipe(duplex=False) for _ in range(2)]
        ends = [end for _, end in pipes]
        given = (module, arguments, str(cwd), faults, environment(), *ends)
        self.process = context.Process(target=_child, args=given)
        self.started = time.monotonic()
        self.process.start()
        self._texts = [b"", b""]
        self._readers = []
        for number, (reading, writing) in enumerate(pipes):
            writing.close()
            reader = threading.Thread(target=self._read, args=(number, reading), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _read(self, number: int, end) -> None:
        while content := os.read(end.fileno(), 2**16):
            self._texts[number] += content

    def kill(self) -> None:
        """SIGKILL, as the kernel sends it when memory runs out."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)

    def wait(self, timeout: float = 120) -> Done:
        """Waits for the end, and reads what was said."""
        self.process.join(max(0.0, timeout - (time.monotonic() - self.started)))
        hung = self.process.is_alive()
        self.kill()
        self.process.join()
        seconds = time.monotonic() - self.started
        for reader in self._readers:
            reader.join(1)  # longer only where a process of its own holds on to its output
        texts = [text.decode(errors="replace") for text in self._texts]
        return Done(self.process.exitcode, *texts, seconds, hung)


def _child(
    module: str,
    arguments: list[str],
    cwd: str,
    faults: dict,
    variables: dict[str, str],
    out,
    err,
) -> None:
    code = 1
    try:
        os.chdir(cwd)
        sys.path[:] = [str(ROOT), *(p for p in sys.path if p)]
        for number, end in ((1, out), (2, err)):
            os.dup2(end.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
        sys.argv = [module, *arguments]
        os.environ.update(variables)
        _configure(variables, keeps="file_size" not in faults)
        _apply(**faults)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # What the interpreter does at its end; a fork of multiprocessing skips it.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _configure(variables: dict[str, str], keeps: bool) -> None:
    """What JAX reads from the environment when it is imported, which the server did before.

    Short compilations are kept too, as here they are all that takes time; none on a full disk.
    """
    import jax

    from experiments.common import cli

    # XLA's time is most of a test's: its programs are small.
    quick = os.environ.get("PURIFY_TEST_QUICK") != "off"
    jax.config.update("jax_disable_most_optimizations", quick)
    jax.config.update("jax_platforms", variables["JAX_PLATFORMS"])
    jax.config.update("jax_compilation_cache_dir", variables["JAX_COMPILATION_CACHE_DIR"])
    name = "jax_persistent_cache_min_compile_time_secs"
    cli._use_compilation_cache = lambda: jax.config.update(name, 0.0 if keeps else 1e9)


def _apply(
    file_size: int | None = None,
    clock: str | None = None,
    unprivileged: bool = False,
    checkout: Path | None = None,
) -> None:
    """file_size: no file can grow beyond so many bytes, as on a full disk. clock: "backwards" or
    "jumping". unprivileged: permissions of files count, even for root. checkout: another one."""
    if checkout is not None:
        from experiments.common import provenance

        provenance.ROOT = checkout
    if file_size is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, hard))
    if clock is not None:
        _turn_clock(clock)
    if unprivileged:
        drop_privileges()


def _turn_clock(how: str) -> None:
    real, calls = time.time, [0]

    def now() -> float:
        calls[0] += 1
        days = -calls[0] if how == "backwards" else 400 * (-1) ** calls[0]
        return real() + 86400.0 * days

    time.time = now
    time.time_ns = lambda: int(now() * 1e9)


def drop_privileges() -> None:
    """Takes from this process root's right to write where permissions forbid it (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    if libc.capget(head, data):
        raise OSError(ctypes.get_errno(), "capget")
    words = list(struct.unpack("6I", data.raw))
    for index in range(
        3
    ):  # effective, permitted, inheritable: without DAC_OVERRIDE and READ_SEARCH
        words[index] &= ~0b110
    if libc.capset(head, struct.pack("6I", *words)):
        raise OSError(ctypes.get_errno(), "capset")
