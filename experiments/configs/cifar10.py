"""CIFAR-10 with small networks: the whole path on real images, on a CPU. Not the paper's setting.

Commands: as in mnist.py, with --config=cifar10 and --epsilon=0.0314
For the paper's networks and schedule see adp_cifar10.py.
"""

from ml_collections import ConfigDict

from experiments.configs import mnist


def get_config() -> ConfigDict:
    """A small U-Net score network and a small convolutional classifier, random flips."""
    config = mnist.get_config()
    config.dataset = "cifar10"
    config.ebm.network = ConfigDict({"name": "UNet", "features": (32, 64, 128), "blocks": 1})
    config.ebm.update({"sigma_max": 0.5, "sigma_min": 0.05, "flip": True})
    config.ebm.update({"steps": 1500, "batch_size": 64, "checkpoint_every": 250})
    config.ebm.update({"steps_per_dispatch": 50})
    config.classifier.network = ConfigDict(
        {"name": "ConvNet", "features": (32, 64, 128), "hidden": 256}
    )
    config.classifier.update({"flip": True, "crop_padding": 4, "steps": 6000})
    config.purification.update({"noise_scale": 0.1, "num_restarts": 2})
    config.attack.epsilon = 8 / 255
    return config
