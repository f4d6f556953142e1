"""Data: labelled images, and batches that depend on the seed and the step alone."""

from purify_jax.data.batching import batch_indices
from purify_jax.data.datasets import Dataset, Records, load_split
from purify_jax.data.images import fit, image_files, read_image, to_float

__all__ = [
    "Dataset",
    "Records",
    "batch_indices",
    "fit",
    "image_files",
    "load_split",
    "read_image",
    "to_float",
]
