"""A classifier of CIFAR-10 that trains on two CPU cores: 8 epochs of the 0.3-PFLOP recipe.

Command: purify-jax train_classifier --config=cifar10_airbench --data_dir=DIR --workdir=runs/cifar10/classifier
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The published settings (arXiv 2404.00498, Muon variant), in parts of 250 images."""
    config = ConfigDict({"dataset": "cifar10", "train_split": "train", "seed": 0})
    config.classifier = ConfigDict(
        {
            "recipe": "airbench",
            "network": {"name": "WhitenedConvNet", "features": (64, 256, 256)},
            "whitening_images": 5000,
            "batch_size": 2000,
            "microbatches": 8,
            "steps": 200,
            "whitening_steps": 75,
            "filter_rate": 0.24,
            "bias_rate": 0.053,
            "head_rate": 0.67,
            "weight_decay": 2e-6,
            "label_smoothing": 0.2,
            "crop_padding": 2,
            "steps_per_dispatch": 5,
            "checkpoint_every": 10,
        }
    )
    return config
