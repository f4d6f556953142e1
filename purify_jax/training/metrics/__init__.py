"""What a training run says of itself: a line of JSON per dispatch, and TensorBoard's events beside them."""

from purify_jax.training.metrics.lines import open_metrics, read_metrics
from purify_jax.training.metrics.pictures import DenoisedSheet
from purify_jax.training.metrics.tensorboard import check_installed

__all__ = ["DenoisedSheet", "check_installed", "open_metrics", "read_metrics"]
