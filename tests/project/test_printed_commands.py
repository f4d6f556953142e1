"""Every command that a page or a --help prints exists, and takes the flags that stand there."""

import json
import re
import subprocess
import sys

from conftest import ROOT

from purify_jax import command

PAGES = ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
#: Parses the flags of (module, arguments) in turn, in one process, and prints what absl says of each.
CODE = """
import importlib, json, sys
from absl import flags
for place, module, arguments in json.load(sys.stdin):
    for name in list(flags.FLAGS):
        delattr(flags.FLAGS, name)
    for name in [name for name in sys.modules if name.startswith("experiments")]:
        del sys.modules[name]
    importlib.import_module(module)
    cli = importlib.import_module("experiments.common.cli")
    sys.argv = cli._with_shipped_configs([module, *arguments])  # config flags look for overrides there
    try:
        rest = flags.FLAGS(sys.argv)
        assert len(rest) == 1, rest
    except Exception as error:
        print(place, module, " ".join(arguments), error)
"""


def commands(text):
    """(name, arguments) of each ``purify-jax NAME --flags`` in shell blocks and module docstrings."""
    joined = re.sub(r"\\\n *", "", text)
    for line in re.findall(r"^ *purify-jax ([a-z_]+ --?.*)$", joined, re.MULTILINE):
        name, *arguments = re.sub(r" +#.*| > .*", "", line).translate({34: None, 39: None}).split()
        yield name, arguments


def printed():
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            yield from ((page, *c) for c in commands(block))
    for path in sorted((ROOT / "experiments").glob("*.py")):
        about = path.read_text().split('"""')[1].replace("\\\n", "")
        yield from ((path.name, *c) for c in commands(about))


def test_printed_commands_take_their_flags():
    found = [
        (place, command.ELSEWHERE.get(name, f"experiments.{name}"), arguments)
        for place, name, arguments in printed()
    ]
    assert len(found) >= 25
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=ROOT,
        input=json.dumps(found),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""


def test_every_command_has_its_group_and_its_line_in_the_reference():
    grouped = [name for names in command.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(command.commands())
    text = (ROOT / "docs" / "commands.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == grouped
