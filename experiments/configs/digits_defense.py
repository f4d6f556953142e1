"""Adversarial training through the purifier, on digits: noise, one denoising call, the classifier.

Command: purify-jax train_defense --config=digits_defense --workdir=runs/digits/defense \
             --classifier=pretrained/digits_classifier.safetensors --score_model=pretrained/digits_score_model.safetensors
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """FGSM from a random start at Linf 0.15; classifier and purifier both train."""
    config = ConfigDict({"dataset": "digits", "train_split": "train", "seed": 0})
    config.defense = ConfigDict(
        {
            "epsilon": 0.15,
            "norm": "linf",
            "attack_steps": 1,
            "trainable": "both",
            "purification": {"method": "tweedie", "noise_scale": 0.25},
            "denoising_weight": 0.1,
            "probe_images": 128,
            "probe_steps": 10,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "batch_size": 128,
            "steps": 1000,
            "steps_per_dispatch": 50,
            "checkpoint_every": 100,
        }
    )
    return config
