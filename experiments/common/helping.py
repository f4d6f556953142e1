"""--help that fits a screen or two, the command's own flags first, and --version. --helpfull is absl's."""

import importlib.metadata
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

from absl import flags

import purify_jax

#: Which flags of shared modules are listed under which title, in this order; the command's own come first.
_TITLES = {
    "experiments.common.loading": "What is evaluated",
    "experiments.common.flagging": "Data and display",
    "experiments.common.shards": "Several processes",
    "experiments.common.cli": "Any command",
}
#: Where the explanations begin.
_COLUMN = 28
_KINDS = {"int": "N", "float": "X", "string": "TEXT", "list": "A,B", "enum": "", "bool": ""}


def answer(arguments: Sequence[str]) -> bool:
    """Prints what --help or --version asks for; False if neither is among the arguments."""
    asked = set(arguments[1:])
    if asked & {"--help", "-help", "-h", "-?"}:
        said = text(flags.FLAGS, inspect.getdoc(sys.modules["__main__"]) or "")
    elif asked & {"--version", "-version"}:
        said = f"purify-jax {purify_jax.__version__}, jax {importlib.metadata.version('jax')}"
    else:
        return False
    try:
        print(said, flush=True)
    except BrokenPipeError:  # the reader has seen enough: COMMAND --help | head
        drop_output()
    return True


def drop_output() -> None:
    """What Python still holds for a reader who left goes nowhere, else it complains at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def text(values: flags.FlagValues, about: str) -> str:
    """What a command does, its flags in groups with their defaults, and how it ends."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    shared = {name: title for name, title in _TITLES.items() if name in sys.modules}
    # A line that ends in a backslash was joined to the next one when Python read the text.
    about = re.sub(r" +(?= {3}--)", " \\\\\n ", about)
    parts = [about]
    known = values.flags_by_module_dict()
    own = [m for m in known if m not in shared and not m.startswith("absl") and m != "__main__"]
    own = [m for m in own if m.startswith(("experiments", "/")) or "purify-jax" in m]
    # As a program the command's own module has the name it was started by.
    own += [m for m in (sys.argv[0], "__main__") if m in known and m not in own]
    for title, modules in (("Flags", own), *((t, [m]) for m, t in shared.items())):
        found = sorted((f for m in modules for f in known.get(m, [])), key=lambda f: f.name)
        if found:
            parts.append("\n".join([f"{title}:", *(_entry(flag, width) for flag in found)]))
    parts.append(
        "Ends with status 0; 1 and one line that starts with 'error:' for bad input or a full disk; what was "
        "written before stays. --helpfull lists the flags of absl and of config files too."
    )
    return "\n\n".join(p if p == about else _wrapped(p, width) for p in parts)


def _wrapped(part: str, width: int) -> str:
    return part if part.count("\n") else textwrap.fill(part, width)


def _entry(flag: flags.Flag, width: int) -> str:
    kind = flag.flag_type().split(" ")[-1]
    choices = getattr(flag.parser, "enum_values", None)
    many = len("|".join(choices or ())) > 60
    value = "|".join(choices) if choices and not many else _KINDS.get(kind, "VALUE") or "NAME"
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}={value}"
    given = flag.default
    shown = ",".join(given) if isinstance(given, list) else "on" if given is True else given
    is_said = isinstance(shown, (str, int, float)) and shown is not False
    about = re.sub(r"^<.*?>: ", "", flag.help.strip()) + (f" ({shown})" if is_said else "")
    about += f" One of {', '.join(choices)}." if choices and many else ""
    lines = textwrap.wrap(about, width - _COLUMN)
    if len(name) + 4 > _COLUMN:
        return "\n".join([f"  {name}", *(" " * _COLUMN + line for line in lines)])
    first = f"  {name}".ljust(_COLUMN) + (lines[0] if lines else "")
    return "\n".join([first, *(" " * _COLUMN + line for line in lines[1:])])
