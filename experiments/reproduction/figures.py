"""What a file of results/ says of the model that its evaluation judges."""

from collections.abc import Sequence
from typing import Any


def judged(part: dict[str, Any]) -> str:
    """The label of the model that an evaluation is about: of a classifier without a purifier, itself."""
    return "defended" if "defended" in part["rows"] else "undefended"


def backward_passes(part: dict[str, Any]) -> float:
    """Backward passes that the attacks took for one image: through the purifier, or through the classifier alone."""
    label = judged(part)
    through = "purifier" if label == "defended" else "classifier"
    return part["figures"][label]["cost"][f"{through}_backward"]


def span(share: Sequence[float]) -> str:
    """A share with its interval.

    >>> span([0.5, 0.4021, 0.5979, 100])
    '0.500 [0.402, 0.598]'
    """
    return f"{share[0]:.3f} [{share[1]:.3f}, {share[2]:.3f}]"
