"""CIFAR-10 with what was best on digits, at a GPU's size. Not run in full yet: no figures.

Command:  purify-jax reproduce --suite=cifar10_best --data_dir=DIR
Needs:    a GPU or TPU; a CPU runs it (tests and smoke runs do, with smaller networks) but not to the end
Expected: docs/experiments.md, C1, written before any run
"""

from ml_collections import ConfigDict

from experiments.configs import adp_cifar10


def get_config() -> ConfigDict:
    """A U-Net on σ ≤ 0.5, gradual noise, WideResNet-16-8 trained on purified images; bfloat16."""
    config = adp_cifar10.get_config()
    config.ebm.network = ConfigDict(
        {"name": "UNet", "features": (128, 256, 256), "blocks": 2, "dtype": "bfloat16"}
    )
    # Levels where purification works; f is the displacement, of which one network carries all levels.
    config.ebm.update({"scale": "per_variance", "sigma_max": 0.5, "sigma_min": 0.05})
    config.ebm.update({"num_sigmas": 32, "learning_rate": 5e-4, "schedule": "cosine"})
    config.ebm.update({"clip_norm": 1.0, "steps": 60_000, "checkpoint_every": 2000})
    config.classifier.network = ConfigDict(
        {"name": "WideResNet", "depth": 16, "width": 8, "dtype": "bfloat16"}
    )
    config.classifier.update({"steps": 39_100, "checkpoint_every": 2000})
    config.classifier.purified = 0.8
    config.purification = ConfigDict(
        {"method": "gradual", "num_steps": 4, "noise_scale": 0.25, "num_restarts": 4}
    )
    return config
