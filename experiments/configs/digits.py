"""Handwritten digits of 8×8 pixels (scikit-learn's, built in): the quickstart.

Command:  purify-jax quickstart --workdir=runs/quickstart
Time:     about 1.5 minutes on two CPU cores
Result:   clean accuracy 0.98 undefended and defended; blind PGD at Linf 0.15 leaves 0.13 of the
          undefended classifier and 0.76 of the defended one; exact PGD+EOT 0.67.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Scalar energy ½‖x − g(x)‖² by an MLP, convolutional classifier."""
    return ConfigDict(
        {
            "dataset": "digits",
            "train_split": "train",
            "test_split": "test",
            "seed": 0,
            "ebm": {
                "role": "energy",
                "network": {"name": "MLP", "features": (256, 256)},
                "scale": "per_variance",
                "sigma_schedule": "geometric",
                "sigma_max": 0.8,
                "sigma_min": 0.1,
                "num_sigmas": 32,
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "clip_norm": 1.0,
                "ema_decay": 0.999,
                "flip": False,
                "patterns": 0.0,
                "steps": 6000,
                "batch_size": 256,
                "steps_per_dispatch": 100,
                "checkpoint_every": 2000,
            },
            "classifier": {
                "network": {"name": "ConvNet", "features": (8, 16), "hidden": 64},
                "learning_rate": 5e-3,
                "schedule": "cosine",
                "clip_norm": 1.0,
                "ema_decay": 0.99,
                "flip": False,
                "purified": 0.0,
                "steps": 800,
                "batch_size": 128,
                "steps_per_dispatch": 100,
                "checkpoint_every": 800,
            },
            "purification": {
                "method": "adp",
                "curvature": "secant",
                "rate": 0.3,
                "max_step": 1.0,
                "num_steps": 5,
                "noise_scale": 0.25,
                "num_restarts": 4,
                "stop_threshold": 0.0,
            },
            "attack": {"norm": "linf", "epsilon": 0.15},
        }
    )
