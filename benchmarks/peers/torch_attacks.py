"""One way of attacking a defense in PyTorch, in a process of its own: images in, attacked images out.

python -m benchmarks.peers.torch_attacks --way=pgd_eot --model=digits --epsilon=0.15 --images=FILE.npz --out=FILE.npz

pgd_eot: PGD of ``--steps`` with the mean gradient of 20 draws (200 × 20 is what recent papers on purification
run; step 0.007 at ε = 8/255, Lee & Kim 2023, arXiv 2303.09051). pgd_eot_compiled: the same through
``torch.compile``. autoattack: the suite ``rand`` of AutoAttack as packaged (``pip install pyautoattack``).
"""

import numpy as np
import torch
import torch.nn.functional as F
from absl import flags
from torch import Tensor, nn

from benchmarks import child
from benchmarks.peers.torch_defenses import DEFENSES
from experiments.common import cli

WAYS = ("pgd_eot", "pgd_eot_compiled", "autoattack")
#: Draws whose gradients one step averages.
EOT = 20
FLAGS = flags.FLAGS


class Counted(nn.Module):
    """A defense that counts the images which a gradient went through."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.backward_images = inner, 0

    def forward(self, images: Tensor) -> Tensor:
        found = self.inner(images)
        if found.requires_grad:
            found.register_hook(self._count)
        return found

    def _count(self, cotangents: Tensor) -> None:
        self.backward_images += len(cotangents)


def pgd_eot(defense: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    """The last iterate of PGD; the draws of a step are one batch."""
    moved, many = x, y.repeat(EOT)
    for _ in range(steps):
        leaf = moved.detach().requires_grad_(True)
        loss = F.nll_loss(defense(leaf.repeat(EOT, 1, 1, 1)), many, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        moved = moved + 0.22 * epsilon * gradient.sign()
        moved = (x + (moved - x).clamp(-epsilon, epsilon)).clamp(0, 1).detach()
    return moved


def autoattack(
    defense: nn.Module, x: Tensor, y: Tensor, epsilon: float, batch_size: int, steps: int = 100
) -> Tensor:
    """The images of AutoAttack's suite ``rand``; the clean image where no draw was fooled. steps: 100 are its own."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(defense, norm="Linf", eps=epsilon, version="rand", seed=0)
    attack.verbose, attack.apgd.n_iter = False, steps
    moved, _ = attack.run_standard_evaluation(x, y, batch_size=batch_size)
    return moved


def main(argv: list[str]) -> None:
    """Flags in; the attacked images in ``--out``, the backward passes of each on standard output."""
    del argv
    torch.manual_seed(0)
    given = np.load(FLAGS.images)
    x = torch.from_numpy(given["images"].transpose(0, 3, 1, 2).copy())
    y = torch.from_numpy(given["labels"]).long()
    defense = DEFENSES[FLAGS.model]().eval().requires_grad_(False)  # the weights need no gradient
    counted = Counted(torch.compile(defense) if FLAGS.way == "pgd_eot_compiled" else defense)
    if FLAGS.way == "autoattack":
        moved = autoattack(counted, x, y, FLAGS.epsilon, FLAGS.batch_size)
    else:
        parts = zip(x.split(FLAGS.batch_size), y.split(FLAGS.batch_size), strict=True)
        moved = torch.cat([pgd_eot(counted, *part, FLAGS.epsilon, FLAGS.steps) for part in parts])
    np.savez(FLAGS.out, adversarial=moved.numpy().transpose(0, 2, 3, 1))
    child.report({"backward passes": counted.backward_images / len(x)})


if __name__ == "__main__":
    flags.DEFINE_enum("way", "pgd_eot", WAYS, "Which attack.")
    flags.DEFINE_enum("model", "digits", sorted(DEFENSES), "Which defense.")
    flags.DEFINE_float("epsilon", None, "Radius of the Linf ball.", required=True)
    flags.DEFINE_integer("steps", 200, "Steps of PGD.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 32, "Images side by side.", lower_bound=1)
    flags.DEFINE_string("images", None, "File with images [n, h, w, c] and labels.", required=True)
    flags.DEFINE_string("out", None, "File to write.", required=True)
    cli.run(main)
