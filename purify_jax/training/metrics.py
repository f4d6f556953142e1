"""What a run says of itself: a line of JSON per dispatch, TensorBoard's events, and a sheet of images."""

import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax.atomic import write_atomically
from purify_jax.checks import InputError
from purify_jax.data import Batches, Dataset
from purify_jax.keys import image_keys, normal_like
from purify_jax.training.step import TrainState
from purify_jax.types import Array, Params

#: (parameters, noisy images, σ ``[batch]``) → what denoising adds to them.
Displacement = Callable[[Params, Array, Array], Array]
#: state → an image ``[h, w, 1 or 3]`` in [0, 1], or None.
Picture = Callable[[TrainState], np.ndarray | None]


def check_installed() -> None:
    """Raises InputError unless tensorboardX is installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError(
            "tensorboard: needs the package tensorboardX (pip install 'purify_jax[tensorboard]'), expected "
            "it installed, or no --tensorboard; metrics.jsonl has the same numbers"
        )


def read_metrics(workdir: str | Path, step: int) -> list[Mapping[str, float]]:
    """The metrics of a run up to ``step``, one mapping per dispatch."""
    path, found = Path(workdir) / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):  # the line being written when the process died
            record = json.loads(line)
            if record["step"] <= step:
                found.append(record)
    return found


class Metrics:
    """Writes the metrics of a run that continues after ``step``; those of later steps are dropped.

    A run that died after its last save does these steps again. TensorBoard drops them by the mark with
    which each start's event file begins.
    """

    def __init__(self, workdir: str | Path, step: int, tensorboard: bool = False):
        path = Path(workdir) / "metrics.jsonl"
        lines = [json.dumps(record) + "\n" for record in read_metrics(workdir, step)]
        write_atomically(path, "".join(lines))
        self._lines = open(path, "a")  # noqa: SIM115
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            # TensorBoard reads a folder's files in the order of their names: seconds, host, then this.
            suffix = f".{step:010d}.{os.getpid()}"
            folder = str(Path(workdir) / "tensorboard")
            self._events = SummaryWriter(
                folder, purge_step=step + 1, max_queue=1, flush_secs=1, filename_suffix=suffix
            )

    def write(
        self, step: int, values: Mapping[str, float], picture: np.ndarray | None = None
    ) -> None:
        """The numbers at the end of a dispatch; the picture is for TensorBoard alone."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        if self._events is None:
            return
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if picture is not None:
            levels = np.rint(np.clip(np.nan_to_num(picture), 0, 1) * 255).astype(np.uint8)
            self._events.add_image("clean_noisy_denoised", levels, step, dataformats="HWC")

    def close(self) -> None:
        """Closes the files."""
        self._lines.close()
        if self._events is not None:
            self._events.close()


class DenoisedSheet:
    """state → eight training images in three rows: as they are, with noise σ, and denoised in one step.

    By the averaged parameters, clipped to [0, 1]; small images are enlarged to 32 pixels a side at least.
    """

    def __init__(
        self, data: Dataset | Batches, displacement: Displacement, sigma: float, count: int = 8
    ):
        size = data.batch_size if isinstance(data, Batches) else len(data)
        images, _ = data.batch(np.arange(min(count, size)))
        keys = image_keys(jax.random.key(0), np.arange(len(images)))
        noisy = jnp.asarray(images) + sigma * normal_like(keys, jnp.asarray(images))
        levels = jnp.full(len(images), sigma, jnp.float32)
        self._shown = np.asarray(images), np.asarray(noisy)
        self._denoise = jax.jit(lambda params: noisy + displacement(params, noisy, levels))

    def __call__(self, state: TrainState) -> np.ndarray | None:
        """The sheet ``[h, w, 1 or 3]`` in [0, 1]; None where this process does not have all parameters."""
        has = lambda x: getattr(x, "is_fully_addressable", True) or x.is_fully_replicated
        if not all(map(has, jax.tree.leaves(state.ema_params))):
            return None
        # As this process's own arrays: of several processes one draws, and none waits for the others.
        params = jax.tree.map(np.asarray, state.ema_params)
        rows = [*self._shown, np.asarray(self._denoise(params))]
        sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
        channels = sheet.shape[-1]
        sheet = sheet if channels in (1, 3) else sheet.mean(axis=-1, keepdims=True)
        factor = -(-32 // self._shown[0].shape[1])
        return np.clip(sheet.repeat(factor, axis=0).repeat(factor, axis=1), 0, 1)
