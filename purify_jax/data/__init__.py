"""Data: labelled images, batches that depend on the seed and the step alone, and iterators of other libraries."""

from purify_jax.data.batching import batch_indices
from purify_jax.data.datasets import Dataset, LazyImages, load_split
from purify_jax.data.images import central_square, image_files, png, read_image, to_float
from purify_jax.data.iterators import Batches, as_training_data

__all__ = [
    "Batches",
    "Dataset",
    "LazyImages",
    "as_training_data",
    "batch_indices",
    "central_square",
    "image_files",
    "load_split",
    "png",
    "read_image",
    "to_float",
]
