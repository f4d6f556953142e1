"""How a command is used: the line that --help begins with, and what absl says of a flag, in this project's words."""

import difflib
import re
import sys
from pathlib import Path

from absl import flags

from purify_jax import command as purify_jax_command

_MISSING = re.compile(r"Flag --(\w+) must have a value other than None")
_KINDS = {"int": "N", "float": "X", "string": "TEXT", "list": "A,B", "enum": "", "bool": ""}


def command() -> str:
    """What the user types: ``purify-jax NAME`` for the commands, ``python -m MODULE`` for anything else."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = Path(sys.argv[0]).stem if spec is None else spec.name.removesuffix(".__main__")
    name = module.rpartition(".")[2]
    known = {*purify_jax_command.ELSEWHERE.values(), f"experiments.{name}"}
    return f"purify-jax {name}" if module in known else f"python -m {module}"


def value(flag: flags.Flag) -> str:
    """A flag with the kind of its value, as ``--epsilon=X``."""
    if flag.boolean:
        return f"--[no]{flag.name}"
    choices = getattr(flag.parser, "enum_values", None)
    several = "|".join(choices or ())
    kind = flag.flag_type().split(" ")[-1]
    shown = several if several and len(several) <= 60 else _KINDS.get(kind, "VALUE") or "NAME"
    return f"--{flag.name}={shown}"


def required(values: flags.FlagValues) -> list[flags.Flag]:
    """The flags that have no default and must be given."""
    found = (values[name] for name in sorted(values))
    return [flag for flag in found if any(_MISSING.search(v.message) for v in flag.validators)]


def line(values: flags.FlagValues) -> str:
    """The command with the flags that it needs; --help begins with it."""
    needed = " ".join(map(value, required(values)))
    return f"usage: {command()} {needed + ' ' if needed else ''}[--flags]"


def explained(message: str, values: flags.FlagValues) -> str:
    """absl's message about flags as one line: the flag, what was given and what was expected."""
    if missing := _MISSING.findall(message):
        return f"flags: {' and '.join(f'--{name}' for name in missing)} missing"
    if unknown := re.match(r"Unknown command line flag '([^']+)'", message):
        near = difflib.get_close_matches(unknown[1], list(values), 1)
        hint = f" (did you mean --{near[0]}?)" if near else ""
        return f"flags: no flag --{unknown[1]}{hint}"
    if given := re.match(r"flag --([\w.]+)=(.*?): (.*)", message, re.DOTALL):
        name, text, reason = given.groups()
        return f"{name}: got {text!r}, expected {_expected(name, reason, values)}"
    return f"flags: {message}"


def _expected(name: str, reason: str, values: flags.FlagValues) -> str:
    if name in values:
        flag = values[name]
        if choices := getattr(flag.parser, "enum_values", None):
            return f"one of {', '.join(choices)}"
        if flag.boolean:
            return "no value, or true or false"
        if says := flag.parser.syntactic_help:
            return says
    return f"another value: {reason}"
