"""Training states on disk: the last few checkpoints of a run, saved by orbax."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from purify_jax.atomic import SaveError
from purify_jax.checks import InputError


class TrainingCheckpoints:
    """The last few training states of a folder, saved by orbax.

    A checkpoint is written beside its final name and renamed when complete, so a process that
    dies while saving, or a full disk, leaves the previous ones as they were.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._manager = self._open()

    def _open(self) -> Any:
        import orbax.checkpoint as ocp  # takes a second to import, and only training needs it

        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
        handler = ocp.StandardCheckpointHandler()
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handler)

    def save(self, step: int, state: Any) -> None:
        """Saves in the background; the state is copied first, so it may be donated afterwards."""
        import orbax.checkpoint as ocp

        if step not in self._manager.all_steps():
            with _saving(self.folder):
                self._manager.save(step, args=ocp.args.StandardSave(state))

    def wait(self) -> None:
        """Waits until the last save is complete; raises SaveError if it failed."""
        with _saving(self.folder):
            self._manager.wait_until_finished()

    def restore_latest(self, template: Any) -> Any | None:
        """The newest readable state in the form of ``template``, or None if there is none.

        A damaged checkpoint is reported, set aside under ``<step>.damaged``, and the one before
        it is used. One that is whole but of another form (another network, another optimizer)
        stays where it is: it is somebody's work.

        Raises InputError for such a checkpoint.
        """
        import orbax.checkpoint as ocp

        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        for step in sorted(self._manager.all_steps(), reverse=True):
            self._check_form(step, abstract)
            try:
                return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:  # orbax and tensorstore raise many kinds of error
                reason = str(error).strip().split("\n")[0][:200]
                logging.error("checkpoint %s is damaged: %s", self.folder / str(step), reason)
                self._set_aside(step)
        return None

    def _check_form(self, step: int, abstract: Any) -> None:
        """Raises InputError if a checkpoint's own description differs from what is expected."""
        try:
            description = self._manager.item_metadata(step)
            stored = sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(description.tree))
        except Exception:  # the description is damaged too; restoring will say so
            return
        expected = sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(abstract))
        if stored != expected:
            differs = next((a for a in stored if stored.count(a) != expected.count(a)), None)
            raise InputError(
                f"checkpoints: {self.folder / str(step)} is of another network, optimizer or version "
                f"({len(stored)} arrays, one of shape {differs}; now {len(expected)}), expected the "
                "same, or another workdir"
            )

    def _set_aside(self, step: int) -> None:
        self._manager.close()
        # One process renames; the others, and any that came first, find it done.
        if jax.process_index() == 0:
            damaged = self.folder / f"{step}.damaged"
            suffix = 0
            while damaged.exists():
                suffix += 1
                damaged = self.folder / f"{step}.damaged{suffix}"
            with suppress(FileNotFoundError):
                os.rename(self.folder / str(step), damaged)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager = self._open()

    def close(self) -> None:
        """Waits for the last save and releases orbax's threads."""
        self._manager.close()


@contextmanager
def _saving(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise many kinds of error
        reason = str(error).strip().split("\n")[0][:200]
        raise SaveError(
            f"saving: a checkpoint in {folder} failed ({reason}); earlier ones are as they were"
        ) from error
