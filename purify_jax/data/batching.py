"""Batches that depend on the seed and the step alone."""

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The indices ``[batch_size]`` of the batch at ``step``: a function of its arguments alone.

    Every epoch is a fresh permutation of ``size`` images; a batch may straddle two epochs.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = position // size
    rows = [_permutation(seed, int(e), size) for e in np.unique(epochs)]
    return np.stack(rows)[epochs - epochs[0], position % size]
