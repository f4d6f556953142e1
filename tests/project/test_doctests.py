"""The examples in docstrings say what the code does."""

import doctest
import importlib
import pkgutil

import pytest

import purify_jax

MODULES = [
    "purify_jax",
    *(m.name for m in pkgutil.walk_packages(purify_jax.__path__, "purify_jax.")),
]
#: Packages in which at least one example is expected: a test that found none would prove nothing.
WITH_EXAMPLES = {
    "costs",
    "keys",
    "arrays",
    "noise",
    "evaluation",
    "models",
    "losses",
    "pytrees",
    "attacks",
}


@pytest.fixture(scope="module")
def found():
    tests = {}
    for name in MODULES:
        if name.endswith("__main__"):
            continue
        module = importlib.import_module(name)
        for test in doctest.DocTestFinder(exclude_empty=True).find(module):
            if test.examples:
                tests[test.name] = test
    return tests


@pytest.mark.ci
def test_examples_in_docstrings_are_true(found):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    wrong = []
    for name, test in found.items():
        if runner.run(test, out=lambda text: wrong.append(text)).failed:
            wrong.append(name)
    assert not wrong, "\n".join(wrong)


def test_the_rooms_that_a_stranger_opens_have_examples(found):
    packages = {name.split(".")[1] for name in found if "." in name}
    assert packages >= WITH_EXAMPLES
