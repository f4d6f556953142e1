"""Data: labelled images, and batches that depend on the seed and the step alone."""

from purify_jax.data.batching import batch_indices
from purify_jax.data.datasets import Dataset, LazyImages, load_split
from purify_jax.data.images import fit, image_files, png, read_image, to_float

__all__ = [
    "Dataset",
    "LazyImages",
    "batch_indices",
    "fit",
    "image_files",
    "load_split",
    "png",
    "read_image",
    "to_float",
]
