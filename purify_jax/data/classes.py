"""Which of a classifier's classes the classes of a data set are: they are compared by name."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from purify_jax.checks import InputError, check_outputs, listed
from purify_jax.data import built_in
from purify_jax.data.datasets import Dataset

_DIGITS = tuple(map(str, range(10)))


def known_class_names(dataset: str) -> tuple[str, ...]:
    """The class names of digits, mnist, cifar10 and cifar10_photos; () of any other data set."""
    if dataset in ("digits", "mnist"):
        return _DIGITS
    return built_in.photograph_classes() if dataset in ("cifar10", "cifar10_photos") else ()


def match_classes(dataset: Dataset, class_names: Sequence[str], num_outputs: int) -> Dataset:
    """The data set with the labels of a classifier, whose classes its own may be some of.

    Args:
      dataset: labelled images; its classes have names, or numbers only.
      class_names: what the classifier's outputs are called; empty where that is not known.
      num_outputs: how many outputs the classifier has.

    Names are compared without regard to case, accents' encoding, and "_", "-" or a space between words. Folders
    that are numbers are a classifier's outputs, counted from 0, or from 1 where there is one for each. A line says
    which classes the data lack. A data set without names keeps its labels.

    Raises InputError that lists both sides where a class is none of the classifier's, and for a classifier that
    has not one output for each class.
    """
    names, count = dataset.class_names, dataset.num_classes
    folder = dataset.name == "folder"
    places: Sequence[int] | None = None
    if names and class_names and (folder or not _are_unnamed(names, class_names)):
        places = _by_name(names, class_names)
        if places is None and _numbers(class_names) in (None, list(range(num_outputs))):
            places = _by_number(names, num_outputs)
    elif names and not class_names and count < num_outputs:
        places = _by_number(names, num_outputs)
    else:
        check_outputs("classifier", (1, num_outputs), count)
        places = range(count)
        if folder and not class_names:
            logging.warning(
                "dataset: the classifier's file names no classes: its outputs are taken as the folders %s",
                listed(names),
            )
    if places is None:
        whose = listed(class_names) or f"{num_outputs} without names"
        raise InputError(
            f"dataset: got the classes {listed(names)}, expected those of the classifier, or some of them, by "
            f"the same names: {whose}"
        )
    said = tuple(class_names) or tuple(f"output {i}" for i in range(num_outputs))
    held = set(places)
    if lacking := [name for i, name in enumerate(said) if i not in held]:
        logging.warning("dataset: no images of the classifier's %s", listed(lacking))
    kept = names if len(names) == num_outputs else ()
    return dataclasses.replace(
        dataset,
        labels=np.array(places, np.int32)[dataset.labels],
        num_classes=num_outputs,
        class_names=tuple(class_names) or kept,
    )


def _by_name(names: Sequence[str], class_names: Sequence[str]) -> list[int] | None:
    """Where each name is among the classifier's; None if one is not there."""
    if list(names) == list(class_names):
        return list(range(len(names)))  # even if a name is there twice
    spellings: list[Callable[[str], str]] = [str, _spelled]
    for spelling in spellings:
        place = {spelling(name): i for i, name in enumerate(class_names)}
        found = [spelling(name) for name in names]
        unique = len(place) == len(class_names) and len(set(found)) == len(found)
        if unique and all(name in place for name in found):
            return [place[name] for name in found]
    return None


def _spelled(name: str) -> str:
    text = " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFC", name).casefold().strip()))
    return str(int(text)) if text.isdecimal() else text


def _by_number(names: Sequence[str], num_outputs: int) -> list[int] | None:
    """Names that are numbers as outputs, counted from 0, or from 1 if there are all; None for other names."""
    numbers = _numbers(names)
    if numbers is None:
        return None
    if sorted(numbers) == list(range(1, num_outputs + 1)):
        logging.warning(
            "dataset: the classes 1 to %d are taken as outputs counted from 1", num_outputs
        )
        return [number - 1 for number in numbers]
    return numbers if 0 in numbers and max(numbers) < num_outputs else None


def _numbers(names: Sequence[str]) -> list[int] | None:
    numbers = [int(name) for name in names if name.isdecimal()]
    return numbers if len(set(numbers)) == len(names) else None


def _are_unnamed(names: Sequence[str], class_names: Sequence[str]) -> bool:
    """Whether one of two lists of one length is 0, 1, 2, ..., as tensorflow-datasets calls classes without names."""
    numbers = [str(i) for i in range(len(names))]
    return len(names) == len(class_names) and numbers in (list(names), list(class_names))
