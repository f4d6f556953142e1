"""What all binaries share: one clear line for bad input, and tqdm-friendly progress."""

import errno
import sys
from collections.abc import Callable

from absl import app, logging

from purify_jax.types import InputError


def run(main: Callable[[list[str]], None]) -> None:
    """Runs ``main`` under absl; bad input and a full disk end in one line and exit status 1."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            _fail(f"arguments: got {' '.join(argv[1:])!r}, expected flags only (see --help)")
        try:
            main(argv)
        except InputError as error:
            _fail(str(error))
        except PermissionError as error:
            _fail(f"file: no permission for {error.filename}")
        except OSError as error:
            full = {errno.ENOSPC: "the disk is full", errno.EFBIG: "the file would be too large"}
            if error.errno not in full:
                raise
            _fail(f"saving: {full[error.errno]}; what was saved before is as it was")

    logging.set_verbosity(logging.WARNING)
    app.run(guarded)


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
