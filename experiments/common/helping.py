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
from experiments.common import usage

#: Which flags of shared modules are listed under which title, in this order; the command's own come first.
_TITLES = {
    "experiments.common.loading": "What is evaluated",
    "experiments.common.flagging": "Data and display",
    "experiments.common.shards": "Several processes",
    "experiments.common.cli": "Any command",
}
#: Where the explanations begin.
_COLUMN = 28


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
    """Discards buffered output after its reader has closed the pipe; Python would report an error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def text(values: flags.FlagValues, about: str) -> str:
    """What a command does, its flags in groups with their defaults, and how it ends."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    groups: dict[str, list[flags.Flag]] = {"Flags": [], **{title: [] for title in _TITLES.values()}}
    for module, found in values.flags_by_module_dict().items():
        # As a program the command's own module has the name it was started by.
        own = module in (sys.argv[0], "__main__") or module.startswith(("experiments", "/"))
        title = _TITLES.get(module, "Flags" if own else None)
        if title:
            groups[title] += found
    # A line that ends in a backslash was joined to the next one when Python read the text.
    parts = [usage.line(values), re.sub(r" +(?= {3}--)", " \\\\\n ", about)]
    for title, found in groups.items():
        entries = [_entry(flag, width) for flag in sorted(found, key=lambda flag: flag.name)]
        parts += ["\n".join([f"{title}:", *entries])] if entries else []
    end = (
        "Ends with status 0; else with one line that starts with 'error:', and 1 for bad input or a full disk, 2 for "
        "bad flags. What was written before stays. --helpfull lists the flags of absl and of config files too."
    )
    return "\n\n".join([*parts, textwrap.fill(end, width)])


def _entry(flag: flags.Flag, width: int) -> str:
    choices = getattr(flag.parser, "enum_values", None)
    many = len("|".join(choices or ())) > 60
    name = f"  {usage.value(flag)}"
    given = flag.default
    shown = ",".join(given) if isinstance(given, list) else "on" if given is True else given
    is_said = isinstance(shown, (str, int, float)) and shown is not False
    about = re.sub(r"^<.*?>: ", "", flag.help.strip()) + (f" ({shown})" if is_said else "")
    about += f" One of {', '.join(choices)}." if choices and many else ""
    blank = " " * _COLUMN
    fits = len(name) + 2 <= _COLUMN
    first = name.ljust(_COLUMN) if fits else blank
    explained = textwrap.fill(about, width, initial_indent=first, subsequent_indent=blank)
    return explained if fits else f"{name}\n{explained}"
