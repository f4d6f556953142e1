"""The paper's settings on MNIST: NCSNv2 on 28×28, a small convolutional classifier.

Commands: as in adp_cifar10.py, with --config=adp_mnist and --epsilon=0.3
Time:     200,000 DSM steps of batch 128 with 64 features: hours on a data-centre GPU (not measured
          here), weeks on a CPU: use mnist.py.
Result:   the paper prints no table for MNIST; mnist.py is what this project measures on a CPU.
"""

from ml_collections import ConfigDict

from experiments.configs import adp_cifar10, mnist


def get_config() -> ConfigDict:
    """σ = 0.25, S = 10, T = 10, λ = 0.05, τ = 0.001 as for CIFAR-10, no flips."""
    config = adp_cifar10.get_config()
    config.dataset = "mnist"
    config.ebm.network.features = 64
    config.ebm.flip = False
    config.ebm.steps = 200_000
    config.classifier = mnist.get_config().classifier
    config.attack.epsilon = 0.3
    return config
