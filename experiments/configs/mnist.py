"""MNIST at 28×28 with small networks for a CPU.

Commands: purify-jax train_classifier --config=mnist --data_dir=DIR --workdir=runs/mnist/classifier
          purify-jax train_ebm --config=mnist --data_dir=DIR --workdir=runs/mnist/ebm
          purify-jax evaluate --score_model=runs/mnist/ebm/model.safetensors \
              --classifier=runs/mnist/classifier/model.safetensors --data_dir=DIR \
              --epsilon=0.3 --workdir=runs/mnist/evaluation
"""

from ml_collections import ConfigDict

from experiments.configs import digits


def get_config() -> ConfigDict:
    """A residual MLP as score network, displacement scaling; a convolutional classifier."""
    config = digits.get_config()
    config.dataset = "mnist"
    config.ebm.update(
        {
            "role": "score",
            "sigma_max": 1.0,
            "learning_rate": 1e-3,
            "steps": 20_000,
            "batch_size": 256,
            "checkpoint_every": 2000,
        }
    )
    config.ebm.network = ConfigDict({"name": "MLP", "features": (1024, 1024)})
    config.classifier.network = ConfigDict(
        {"name": "ConvNet", "features": (16, 32, 64), "hidden": 128}
    )
    config.classifier.update(
        {"learning_rate": 2e-3, "steps": 4000, "checkpoint_every": 1000, "ema_decay": 0.999}
    )
    config.purification.update({"rate": 0.5, "num_steps": 5, "noise_scale": 0.3})
    config.attack.epsilon = 0.3
    return config
