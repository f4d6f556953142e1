"""Adversarial training through the purifier, on CIFAR-10 and two CPU cores.

Command: purify-jax train_defense --config=cifar10_defense --data_dir=DIR --workdir=runs/cifar10/defense \
             --classifier=runs/cifar10/classifier/model.safetensors --score_model=runs/cifar10/edm/model.safetensors
The control, without a purifier, is the same without --score_model and with another --workdir. The suite
cifar10_defense takes half of the steps: each costs twice one of the control.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Two steps of PGD at Linf 8/255; classifier and purifier both train.

    From one step, FGSM or N-FGSM, this classifier learns to hide (docs/experiments.md).
    """
    config = ConfigDict({"dataset": "cifar10", "train_split": "train", "seed": 0})
    config.defense = ConfigDict(
        {
            "epsilon": 8 / 255,
            "norm": "linf",
            "attack_steps": 2,
            "step_size": 6 / 255,
            "trainable": "both",
            "purification": {"method": "tweedie", "noise_scale": 0.1},
            "denoising_weight": 1.0,
            "label_smoothing": 0.1,
            "crop_padding": 2,
            "flip": True,
            "probe_images": 256,
            "probe_steps": 10,
            "rule": "muon",
            "learning_rate": 6e-3,
            "schedule": "cosine",
            "warmup_steps": 50,
            "weight_decay": 5e-4,
            "ema_decay": 0.995,
            "batch_size": 128,
            "steps": 2000,
            "steps_per_dispatch": 5,
            "checkpoint_every": 50,
        }
    )
    return config
