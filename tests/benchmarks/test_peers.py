"""The PyTorch peers are the library's networks, and the isolated convolutions the same work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import settings as sizes
from benchmarks.networks import kernels, subjects
from purify_jax import networks
from purify_jax.networks.convolution import convolve

torch = pytest.importorskip("torch")
from twins import check_close, input_gradient, nchw, nhwc, randomised  # noqa: E402

from benchmarks.peers.torch_shuffled_unet import ShuffledUNet  # noqa: E402
from experiments.defenses.torch_whitened_convnet import WhitenedConvNet  # noqa: E402


def _kernel(weight, rows=None, columns=None):
    """A PyTorch weight as a linen kernel: OIHW → HWIO, or OI → IO; outputs and inputs reordered."""
    array = weight.detach().numpy()
    array = array if rows is None else array[rows]
    array = array if columns is None else array[:, columns]
    return jnp.asarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T)


def _check_shapes(network, variables, images):
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    expected = jax.eval_shape(network.init, jax.random.key(0), images)
    assert shapes(variables) == shapes(expected)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((3, 32, 32, 3), np.float32)


@pytest.fixture(scope="module")
def whitened(images):
    """The same random classifier in PyTorch and in JAX (network, variables)."""
    features = (4, 6, 8)
    module, network = (
        randomised(WhitenedConvNet(features)),
        networks.WhitenedConvNet(features=features),
    )
    params = {"whitening_bias": jnp.asarray(module.whitening_bias.detach().numpy())}
    stats = {"whitening": _kernel(module.whitening)}
    for i, group in enumerate(module.groups):
        for j in range(2):
            norm = getattr(group, f"norm{j}")
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2.0)
            params[f"group{i}_conv{j}"] = {"kernel": _kernel(getattr(group, f"conv{j}").weight)}
            params[f"group{i}_norm{j}"] = {"bias": jnp.asarray(norm.bias.detach().numpy())}
            stats[f"group{i}_norm{j}"] = {
                "mean": jnp.array(norm.running_mean.numpy()),
                "var": jnp.array(norm.running_var.numpy()),
            }
    params["head"] = {"kernel": _kernel(module.head.weight)}
    variables = {"params": params, "batch_stats": stats}
    _check_shapes(network, variables, images)
    return module, network, variables


@pytest.mark.ci
def test_the_whitened_classifier_is_the_librarys(whitened, images):
    module, network, variables = whitened
    module.eval()
    check_close(module(nchw(images)).detach().numpy(), network.apply(variables, images))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(network.apply(variables, x) ** 2)))
    check_close(input_gradient(module, images), gradient(images))


def test_the_whitened_classifier_trains_on_the_librarys_statistics(whitened, images):
    module, network, variables = whitened
    before = variables["batch_stats"]
    apply = jax.jit(lambda x: network.apply(variables, x, train=True, mutable=["batch_stats"]))
    expected, updated = apply(images)
    found = module.train()(nchw(images))
    module.eval()
    check_close(found.detach().numpy(), expected)
    sizes_of = {"group0_norm0": 15, "group1_norm1": 7, "group2_norm0": 3}
    for name, size in sizes_of.items():
        norm = getattr(module.groups[int(name[5])], name[7:])
        after = updated["batch_stats"][name]
        check_close(norm.running_mean.numpy(), after["mean"])
        # PyTorch's running variance is that of a sample: larger by n / (n − 1).
        count, was = 3 * size**2, np.asarray(before[name]["var"])
        variance = np.asarray(after["var"]) - 0.6 * was
        check_close(norm.running_var.numpy() - 0.6 * was, variance * count / (count - 1))


def _unet_variables(module, features):
    """The library's parameters of a peer with one block a level.

    Folded channels are (row, column, channel) in the library and (channel, row, column) in PyTorch.
    """
    order = lambda channels: np.arange(4 * channels).reshape(channels, 4).T.ravel()
    layer = lambda m, rows=None, columns=None: {
        "kernel": _kernel(m.weight, rows, columns)[
            (0, 0) if m.weight.shape[-1] == 1 else slice(None)
        ],
        "bias": jnp.asarray(m.bias.detach().numpy())[slice(None) if rows is None else rows],
    }
    norm = lambda m: {
        "scale": jnp.asarray(m.weight.detach().numpy()),
        "bias": jnp.asarray(m.bias.detach().numpy()),
    }
    dense = [layer(m, columns=order(n)) for m, n in zip(module.enter, features, strict=False)]
    for leave, merge, fine in zip(module.leave, module.merge, features[-2::-1], strict=True):
        dense += [layer(leave, rows=order(fine)), layer(merge)]
    body = {f"Dense_{i}": each for i, each in enumerate(dense)}
    body["Conv_0"] = layer(module.begin, columns=order(3))
    body["Conv_1"] = layer(module.end, rows=order(3))
    body["GroupNorm_0"] = norm(module.norm)
    for i, (block,) in enumerate([*module.down, *module.up]):
        body[f"_Block_{i}"] = {
            "Conv_0": layer(block.conv0),
            "Conv_1": layer(block.conv1),
            "GroupNorm_0": norm(block.norm0),
            "GroupNorm_1": norm(block.norm1),
        }
    return {"params": {"body": body}}


@pytest.mark.ci
def test_the_shuffled_unet_is_the_librarys(images):
    features = (4, 8, 12)
    module = randomised(ShuffledUNet(features, blocks=1))
    network = networks.ShuffledUNet(features=features, blocks=1)
    variables = _unet_variables(module, features)
    small = images[:, :16, :16]
    _check_shapes(network, variables, small)
    check_close(nhwc(module(nchw(small))), jax.jit(network.apply)(variables, small))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(network.apply(variables, x) ** 2)))
    check_close(input_gradient(module, small), gradient(small))


@pytest.mark.ci
def test_every_subjects_peer_has_the_networks_parameters():
    tiny = sizes.Settings(
        features=8, depth=10, width=1, convnet_features=(4, 4, 4), unet_features=(4, 4, 4)
    )
    for subject in subjects.chosen(tiny):
        images = jnp.zeros((1, 32, 32, 3))
        shapes = jax.eval_shape(subject.make("float32").init, jax.random.key(0), images)
        ours = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"]))
        module = subject.peer()
        # One convolution of the NCSNv2 peer is never called.
        unused = getattr(module, "up", None) and getattr(module.up[0], "fuse", None)
        spare = sum(p.numel() for p in unused.parameters()) if unused else 0
        assert sum(p.numel() for p in module.parameters()) - spare == ours, subject.label


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_isolated_convolutions_are_the_same_work(dilation):
    random = lambda seed, *shape: np.random.default_rng(seed).standard_normal(shape, np.float32)
    x, k, y = random(0, 2, 6, 6, 3), random(1, 3, 3, 3, 4), random(2, 2, 6, 6, 4)
    conv = lambda x, k: convolve(x, k, dilation=(dilation, dilation))
    forward, backward = jax.vjp(conv, x, k)
    weight = torch.from_numpy(k.transpose(3, 2, 0, 1).copy())
    calls = kernels.torch_calls(torch, weight, dilation)
    found = {name: call(nchw(x), nchw(y)) for name, call in calls.items()}
    images_gradient, kernel_gradient = backward(jnp.asarray(y))
    check_close(nhwc(found["forward"]), forward)
    check_close(nhwc(found["images' gradient"]), images_gradient)
    theirs = found["kernel's gradient"].numpy().transpose(2, 3, 1, 0)
    check_close(theirs, kernel_gradient)


def test_the_convolutions_are_those_of_the_networks():
    convnet = sizes.Settings(networks=("whitened_convnet",))
    (subject,) = subjects.chosen(convnet)
    found = kernels.dominant(subject)
    assert [(s.inputs, s.outputs, s.size, s.batch) for s in found] == [
        (256, 256, 7, 128),
        (64, 256, 15, 128),
    ]
    assert 0.7 < sum(found.values()) < 1
    (subject,) = subjects.chosen(sizes.Settings(networks=("ncsnv2",)))
    found = {(s.inputs, s.outputs, s.size, s.batch) for s in kernels.dominant(subject)}
    assert {(128, 128, 32, 8), (256, 256, 16, 8)} <= found
