"""Arrays and modules to and from PyTorch, for comparing a network with its peer."""

import numpy as np
import torch


def nchw(array):
    return torch.from_numpy(np.asarray(array).transpose(0, 3, 1, 2).copy())


def nhwc(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def randomised(module):
    """The module with random parameters of a size that keeps activations near 1, so that all of them count."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    return module


def input_gradient(module, images):
    leaf = nchw(images).requires_grad_(True)
    return nhwc(torch.autograd.grad((module(leaf) ** 2).sum(), leaf)[0])


def check_close(found, expected):
    expected = np.asarray(expected)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
