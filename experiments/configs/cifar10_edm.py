"""A noise-conditional denoiser of CIFAR-10 for two CPU cores: a pixel-folding U-Net, trained as EDM.

Command: purify-jax train_ebm --config=cifar10_edm --data_dir=DIR --workdir=runs/cifar10/edm
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """ln σ ~ N(−1.9, 1.2²) in units of [0, 1]: EDM's levels, halved with the images' range."""
    config = ConfigDict({"dataset": "cifar10", "train_split": "train", "seed": 0})
    config.ebm = ConfigDict(
        {
            "loss": "edm",
            "network": {
                "name": "NoiseConditionalUNet",
                "features": (64, 128, 128),
                "blocks": 1,
                "data_std": 0.25,
                "reference_sigma": 0.25,
            },
            "log_sigma_mean": -1.9,
            "log_sigma_std": 1.2,
            "flip": True,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_steps": 200,
            "clip_norm": 1.0,
            "ema_decay": 0.999,
            "steps": 4000,
            "batch_size": 128,
            "steps_per_dispatch": 20,
            "checkpoint_every": 100,
        }
    )
    config.purification = ConfigDict({"method": "tweedie", "noise_scale": 0.25, "num_restarts": 1})
    return config
