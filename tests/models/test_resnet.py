"""torchvision's bottleneck networks: sizes, strictness, and outputs against PyTorch's own layers."""

import jax
import numpy as np
import pytest

import purify_jax as pj
from purify_jax.checks import InputError
from purify_jax.models import torch_weights
from purify_jax.networks import ResNet

PUBLISHED = [("ResNet-50", 1, 25_557_032), ("WideResNet-50-2", 2, 68_883_240)]


@pytest.mark.parametrize(("name", "width", "count"), PUBLISHED, ids=[p[0] for p in PUBLISHED])
def test_published_parameter_counts(name, width, count):
    shapes = pj.models.expected_shapes(ResNet(width=width), (224, 224, 3))
    found = {k: s for k, s in shapes.items() if k.startswith("params/")}
    assert sum(int(np.prod(s)) for s in found.values()) == count


def _torch_network(torch, blocks, features, width, outputs):
    """An independent network with torchvision's names."""
    nn = torch.nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs, plane, stride):
            super().__init__()
            inner = plane * width
            self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(inner)
            self.conv3 = nn.Conv2d(inner, 4 * plane, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * plane)
            if stride != 1 or inputs != 4 * plane:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, 4 * plane, 1, stride, bias=False), nn.BatchNorm2d(4 * plane)
                )

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            y = torch.relu(self.bn2(self.conv2(y)))
            y = self.bn3(self.conv3(y))
            return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, features, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(features)
            inputs = features
            for group, count in enumerate(blocks):
                plane = features * 2**group
                made = []
                for block in range(count):
                    made.append(Bottleneck(inputs, plane, 2 if group and not block else 1))
                    inputs = 4 * plane
                setattr(self, f"layer{group + 1}", nn.Sequential(*made))
            self.fc = nn.Linear(inputs, outputs)

        def forward(self, x):
            mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in
                         ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
            x = torch.relu(self.bn1(self.conv1((x - mean) / std)))
            x = nn.functional.max_pool2d(x, 3, 2, 1)
            for group in range(len(blocks)):
                x = getattr(self, f"layer{group + 1}")(x)
            return self.fc(x.mean(dim=(2, 3)))

    torch.manual_seed(0)
    network = Network()
    for module in network.modules():  # statistics and scales that tell one layer from another
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2)
    return network.eval()


@pytest.mark.parametrize("width", [1, 2])
def test_outputs_and_input_gradients_are_pytorchs(width):
    torch = pytest.importorskip("torch")
    theirs = _torch_network(torch, (1, 2, 1), 8, width, 5)
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    model, table = torch_weights.import_model("resnet", state, (64, 64, 3))
    assert model.network == ResNet(5, (1, 2, 1), 8, width)
    assert {e.source for e in table} == {k for k in state if "num_batches" not in k}
    images = np.random.default_rng(0).uniform(size=(2, 64, 64, 3)).astype(np.float32)
    shown = torch.tensor(np.moveaxis(images, -1, 1), requires_grad=True)
    output = theirs(shown)
    output.square().sum().backward()
    logits_fn = pj.models.logits_fn(model)

    def squared(x):
        logits = logits_fn(x)
        return (logits**2).sum(), logits

    gradient, logits = jax.jit(jax.grad(squared, has_aux=True))(images)
    np.testing.assert_allclose(logits, output.detach(), rtol=1e-4, atol=1e-4)
    expected = np.moveaxis(shown.grad.numpy(), 1, -1)
    assert np.abs(gradient - expected).max() < 1e-4 * np.abs(expected).max()


def test_what_does_not_fit_is_named():
    shapes = pj.models.expected_shapes(ResNet(5, (1, 1), 8), (32, 32, 3))
    assert "params/layer1_0/downsample_conv/kernel" in shapes
    with pytest.raises(InputError, match=r"resnet: missing fc\.weight"):
        torch_weights.import_model("resnet", {"conv1.weight": np.zeros((8, 3, 7, 7))})
