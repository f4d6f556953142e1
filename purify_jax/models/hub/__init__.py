"""A purifier with its classifier as a folder: Hugging Face's layout, here or on their hub."""

from purify_jax.models.hub.folders import save
from purify_jax.models.hub.names import download, is_hub_name
from purify_jax.models.hub.pairs import Pretrained, digest, load_pair

__all__ = ["Pretrained", "digest", "download", "is_hub_name", "load_pair", "save"]
