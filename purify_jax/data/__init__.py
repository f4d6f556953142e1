"""Data: labelled images, batches that depend on the seed and the step alone, and iterators of other libraries."""

from purify_jax.data.batching import batch_indices
from purify_jax.data.classes import known_class_names, match_classes
from purify_jax.data.datasets import Dataset, load_split
from purify_jax.data.images import central_square, image_files, png, read_image, to_float
from purify_jax.data.iterators import Batches, as_training_data
from purify_jax.data.prepared import LazyImages

__all__ = [
    "Batches",
    "Dataset",
    "LazyImages",
    "as_training_data",
    "batch_indices",
    "central_square",
    "image_files",
    "known_class_names",
    "load_split",
    "match_classes",
    "png",
    "read_image",
    "to_float",
]
