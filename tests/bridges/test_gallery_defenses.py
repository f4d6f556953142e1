"""The gallery's defenses: the networks that ship, the steps as published, and what would have been claimed."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

import purify_jax as pj
from experiments.reproduction import gallery_table

torch = pytest.importorskip("torch", reason="PyTorch is not installed (make torch)")
from experiments.defenses import (  # noqa: E402
    claims,
    diffpure,
    jpeg_and_tv,
    k_winners,
    langevin,
    networks,
)


@pytest.fixture(scope="module")
def photographs():
    images, labels = pj.load_split("cifar10_photos", "test").batch(np.arange(4))
    return images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), labels


def _shipped(name, role):
    return pj.load_model(ROOT / "pretrained" / f"{name}.safetensors", (role,))


@pytest.mark.ci
def test_the_classifier_is_the_one_that_ships(photographs):
    images, x, _ = photographs
    expected = pj.models.logits_fn(_shipped("cifar10_classifier", "classifier"))(images)
    np.testing.assert_allclose(networks.classifier()(x).detach(), expected, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.05, 0.3])
def test_the_denoiser_is_the_one_that_ships(photographs, sigma):
    images, x, _ = photographs
    model = _shipped("cifar10_edm", "score")
    moved = jax.jit(model.network.apply)({"params": model.params}, images, jnp.full(4, sigma))
    found = networks.Denoiser()(x, sigma).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, images + moved, atol=1e-5)


@pytest.mark.parametrize("name", gallery_table.DEFENSES)
def test_a_defense_answers_and_is_short(photographs, name):
    _, x, labels = photographs
    module = importlib.import_module(f"experiments.defenses.{name}")
    assert len((ROOT / "experiments" / "defenses" / f"{name}.py").read_text().splitlines()) <= 60
    built = module.build()
    purified = x
    if isinstance(built, tuple):
        purified = built[0](x)
        assert purified.shape == x.shape
        assert 0 < float((purified - x).abs().mean()) < 0.1
    with torch.no_grad():
        answers = (built[1] if isinstance(built, tuple) else built)(purified)
    assert answers.shape == (4, 10)
    assert int((answers.argmax(-1).numpy() == labels).sum()) >= 2


def test_total_variation_by_its_dual():
    """The divergence is minus the gradient's adjoint; and what is constant has nothing to lose."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    u, p = draw(2, 3, 5, 6), draw(2, 2, 3, 5, 6)
    p[0, ..., -1, :] = p[1, ..., :, -1] = 0  # where the gradient has no value
    inner = (jpeg_and_tv.gradient(u) * p).sum()
    torch.testing.assert_close(inner, -(u * jpeg_and_tv.divergence(p)).sum())
    grey = torch.full((1, 3, 16, 16), 128 / 255)
    torch.testing.assert_close(jpeg_and_tv.TotalVariation()(grey), grey)


def test_winners_in_closed_form():
    found = k_winners.KWinners(0.5)(torch.tensor([[3.0, -1.0, 2.0, 0.5], [4.0, 1.0, 2.0, 3.0]]))
    assert found.tolist() == [[3.0, 0.0, 2.0, 0.0], [4.0, 0.0, 0.0, 3.0]]


def test_diffusion_ends_at_the_denoised_image(monkeypatch):
    """With a denoiser that knows the image, the last step is the image, whatever the noise was."""
    image = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))

    class Knowing(torch.nn.Module):
        def forward(self, x, sigma):
            return image

    monkeypatch.setattr(networks, "Denoiser", Knowing)
    torch.testing.assert_close(diffpure.DiffPure()(0 * image), image)
    # Langevin's chain around it, and then the denoiser: the value is the image, the gradient the identity's.
    x = image.clone().requires_grad_()
    purified = langevin.Langevin()(x)
    torch.testing.assert_close(purified.detach(), image)
    (slope,) = torch.autograd.grad(purified.sum(), x)
    assert (slope == 1).all()


def test_naive_pgd_goes_to_the_corner_or_nowhere():
    """A linear classifier's worst image in the ball; without a gradient images stay."""
    weights = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat_interleave(2, 1)  # [2, 4]
    linear = lambda x: x.flatten(1) @ weights.T
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    expected = 0.5 + 8 / 255 * torch.tensor([-1.0, -1.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
    torch.testing.assert_close(claims.pgd(linear, x, y, 8 / 255), expected)
    assert (claims.pgd(lambda x: linear(x.detach()), x, y, 0.1) == x).all()
    assert (claims.pgd(lambda x: linear(torch.round(x)), x, y, 0.1) == x).all()
