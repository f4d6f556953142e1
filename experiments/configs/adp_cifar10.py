"""The paper's settings on CIFAR-10 (Yoon, Hwang & Lee 2021, section 4 and appendix A).

Commands: purify-jax train_ebm --config=adp_cifar10 --data_dir=DIR --workdir=runs/adp_cifar10/ebm
          purify-jax train_classifier --config=adp_cifar10 --data_dir=DIR --workdir=runs/adp_cifar10/classifier
          purify-jax evaluate --score_model=runs/adp_cifar10/ebm/model.safetensors \
              --classifier=runs/adp_cifar10/classifier/model.safetensors --data_dir=DIR \
              --suite=paper --epsilon=0.0314 --images=512 --workdir=runs/adp_cifar10/paper
Time:     300,000 DSM steps of batch 128 and 200 epochs of WideResNet-28-10: about two days on one
          data-centre GPU by the papers' accounts; not measured here. A CPU needs months: use cifar10.py.
Result:   published: clean 86.14, BPDA+EOT 70.01 (σ = 0.25); under exact gradients with EOT 33.7 ± 0.5
          (Croce et al. 2022). --noise_scale=0.1 is the paper's other setting.
"""

from ml_collections import ConfigDict

from purify_jax import models


def get_config() -> ConfigDict:
    """NCSNv2 with 128 features, WideResNet-28-10; σ = 0.25, S = 10, T = 10, λ = 0.05, τ = 0.001."""
    return ConfigDict(
        {
            "dataset": "cifar10",
            "train_split": "train",
            "test_split": "test",
            "seed": 0,
            "ebm": {
                "role": "score",
                "network": {"name": "NCSNv2", "features": 128},
                "scale": "per_sigma",
                "sigma_schedule": "geometric",
                "sigma_max": 50.0,
                "sigma_min": 0.01,
                "num_sigmas": 232,
                "learning_rate": 1e-4,
                "schedule": "constant",
                "clip_norm": 1e9,  # the published training does not clip
                "ema_decay": 0.999,
                "flip": True,
                "steps": 300_000,
                "batch_size": 128,
                "steps_per_dispatch": 100,
                "checkpoint_every": 5000,
            },
            "classifier": {
                "network": {"name": "WideResNet", "depth": 28, "width": 10},
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "clip_norm": 1.0,
                "weight_decay": 5e-4,
                "ema_decay": 0.999,
                "flip": True,
                "crop_padding": 4,
                "steps": 78_200,
                "batch_size": 128,
                "steps_per_dispatch": 100,
                "checkpoint_every": 5000,
            },
            "purification": dict(models.PUBLISHED),
            "attack": {"norm": "linf", "epsilon": 8 / 255},
        }
    )
