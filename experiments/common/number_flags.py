"""Flags that are numbers, or fractions such as 8/255: the type of every flag and config field that is a float."""

import re
from typing import Any

from absl import flags

from purify_jax.checks import number

# A flag belongs to the module that calls ``define``, in --help as for absl.
flags.disclaim_key_flags()

_FRACTION = re.compile(r"\s*[-+.\deE]+\s*/\s*[.\deE]+\s*")


class NumberParser(flags.FloatParser):
    """absl's parser of floats, and of fractions."""

    syntactic_help = "a number or a fraction"

    def convert(self, argument: Any) -> float:
        """The value of a flag's text."""
        return number(argument) if isinstance(argument, str) else super().convert(argument)


def define(name: str, default: float | None, help: str, **more: Any) -> None:
    """``flags.DEFINE_float`` that takes fractions too."""
    flags.DEFINE(NumberParser(), name, default, help, serializer=flags.ArgumentSerializer(), **more)


def with_numbers(config: Any) -> Any:
    """A ConfigDict, where every text that is a fraction ("8/255") has become its number."""
    if not hasattr(config, "ignore_type"):  # what a config file returned by mistake
        return config
    with config.ignore_type():
        for name, value in config.items():
            if isinstance(value, type(config)):
                with_numbers(value)
            elif isinstance(value, str) and _FRACTION.fullmatch(value):
                config[name] = number(value)
    return config
