"""Training states on disk: the last few checkpoints of a run, saved by orbax, and what it began with."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from absl import logging
from chex import ArrayTree
from jax.experimental import multihost_utils

from purify_jax.atomic import SaveError, write_atomically
from purify_jax.checks import InputError
from purify_jax.models.model import Model

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


class TrainingCheckpoints:
    """The last few training states of a folder, saved by orbax.

    A checkpoint is written beside its final name and renamed when complete, so a process that
    dies while saving, or a full disk, leaves the previous ones as they were.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._manager = self._open()

    def _open(self) -> "ocp.CheckpointManager":
        import orbax.checkpoint as ocp  # takes a second to import, and only training needs it

        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
        handler = ocp.StandardCheckpointHandler()
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handler)

    def save(self, step: int, state: ArrayTree) -> None:
        """Saves in the background; the state is copied first, so it may be donated afterwards."""
        import orbax.checkpoint as ocp

        if step not in self._manager.all_steps():
            with _saving(self.folder):
                self._manager.save(step, args=ocp.args.StandardSave(state))

    def wait(self) -> None:
        """Waits until the last save is complete; raises SaveError if it failed."""
        with _saving(self.folder):
            self._manager.wait_until_finished()

    def restore_latest(self, template: ArrayTree) -> ArrayTree | None:
        """The newest readable state in the form of ``template``, or None if there is none.

        A damaged checkpoint is logged and renamed to ``<step>.damaged``, and the one before it is used.
        Damage is what two attempts find while every file of the checkpoint can be read: an error of the
        disk, of the network or of memory is raised, and the checkpoint stays as it is. So does a checkpoint
        of another form (another network, another optimizer).

        Raises InputError for a checkpoint of another form, OSError for files that cannot be read.
        """
        import orbax.checkpoint as ocp

        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore(step, abstract)
            except (InputError, *_NO_DAMAGE):
                raise
            except Exception as error:  # orbax and tensorstore raise many kinds of error
                reason = str(error).strip().split("\n")[0][:200]
                logging.error("checkpoint %s is damaged: %s", self.folder / str(step), reason)
                self._set_aside(step)
        return None

    def _restore(self, step: int, abstract: ArrayTree) -> ArrayTree:
        import orbax.checkpoint as ocp

        def attempt() -> ArrayTree:
            self._check_form(step, abstract)
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

        try:
            return attempt()
        except InputError:
            raise
        except Exception:  # once more, after every file has been read without an error
            for path in (self.folder / str(step)).rglob("*"):
                if path.is_file():
                    path.read_bytes()
        try:
            return attempt()
        except FileNotFoundError as error:  # the one OSError that is damage
            raise ValueError(str(error)) from error

    def _check_form(self, step: int, abstract: ArrayTree) -> None:
        """Raises InputError if a checkpoint's own description differs from what is expected."""
        try:
            stored = _form(self._manager.item_metadata(step).tree)
        except Exception:  # the description is damaged too; restoring will say so
            return
        expected = _form(abstract)
        if not stored:
            return
        differs = sorted(n for n in stored | expected if stored.get(n) != expected.get(n))
        if differs:
            first = differs[0]
            raise InputError(
                f"checkpoints: {self.folder / str(step)} is of another network, optimizer or version "
                f"({first}: {stored.get(first, 'absent')} there, {expected.get(first, 'absent')} now), "
                "expected the same, or another workdir"
            )

    def _set_aside(self, step: int) -> None:
        self._manager.close()
        # One process renames; the others, and any that came first, find it done.
        if jax.process_index() == 0:
            before = len(list(self.folder.glob(f"{step}.damaged*")))
            with suppress(FileNotFoundError):
                os.rename(self.folder / str(step), self.folder / f"{step}.damaged{before or ''}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager = self._open()

    def close(self) -> None:
        """Waits for the last save and releases orbax's threads."""
        self._manager.close()


#: Errors that say nothing about a checkpoint's content.
_NO_DAMAGE = (OSError, MemoryError, jax.errors.JaxRuntimeError)


def _form(tree: ArrayTree) -> dict[str, str]:
    """Path of each array → its dtype and shape; orbax keeps fields, keys and places as names alike."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = lambda key: getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))
    return {
        "/".join(str(name(key)) for key in path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many kinds of error
        reason = str(error).strip().split("\n")[0][:200]
        raise SaveError(
            f"saving: a checkpoint in {folder} failed ({reason}); earlier ones are as they were"
        ) from error


def digest(weights: ArrayTree) -> str:
    """SHA-256 of a pytree: paths, dtypes, shapes and values of its arrays and numbers."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
        array = np.asarray(leaf)
        about = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} "
        found.update(about.encode() + array.tobytes())
    return found.hexdigest()


def claim_inputs(workdir: str | Path | None, inputs: Mapping[str, object]) -> None:
    """Writes the digests of what a training starts from, or checks that they are those of before.

    Checkpoints hold what became of these weights; a training that continued them would silently ignore
    the weights that it is given now.

    Args:
      workdir: of the training; None for none.
      inputs: models or other pytrees by name; None for what is not given.

    Raises InputError, naming the first that differs.
    """
    if workdir is None:
        return
    path = Path(workdir) / "inputs.json"
    weights = {n: dict(v.variables) if isinstance(v, Model) else v for n, v in inputs.items()}
    now = {name: digest(value) for name, value in weights.items() if value is not None}
    try:
        before = json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise InputError(f"workdir: {path} is damaged ({error}), expected it as written") from error
    if before is None and (Path(workdir) / "checkpoints").is_dir():
        before = {}  # a training that began with nothing
    if before is None:
        if now and jax.process_index() == 0:
            write_atomically(path, json.dumps(now, indent=2))
        return
    for name in sorted({**before, **now}):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{name}: its weights are not those that the training in {workdir} began with, expected "
                "the same, or another workdir"
            )
