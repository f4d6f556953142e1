"""A classifier of CIFAR-10 fine-tuned on images that one denoising step has cleaned, for certification.

Command: purify-jax train_classifier --config=cifar10_denoised --data_dir=DIR \
             --start=runs/cifar10/classifier/model.safetensors --score_model=runs/cifar10/edm/model.safetensors \
             --workdir=runs/cifar10/denoised
"""

from ml_collections import ConfigDict

from experiments.configs import cifar10_purified


def get_config() -> ConfigDict:
    """1500 steps: noise of σ = 0.25 and one call of the denoiser, as its model file says."""
    config = cifar10_purified.get_config()
    del config.classifier.purification
    config.classifier.update({"steps": 1500, "ema_decay": 0.995, "checkpoint_every": 50})
    return config
