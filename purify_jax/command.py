"""The installed command: ``purify-jax NAME --flags`` is ``python -m experiments.NAME`` of a checkout."""

import ast
import difflib
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

import purify_jax

#: Commands that are not at the top of the experiments folder.
ELSEWHERE = {
    "exchange": "experiments.reproduction.exchange",
    "tables": "experiments.reproduction.tables",
}


def _experiments() -> ModuleType:
    """The package of the binaries: the installed one, or that of the checkout.

    It is known as ``experiments`` in this process alone; nothing of that name is installed.
    """
    if "experiments" not in sys.modules:
        checkout = Path(__file__).parents[1] / "experiments"
        installed = Path(__file__).parent / "experiments"
        folder = installed if installed.is_dir() else checkout
        spec = importlib.util.spec_from_file_location(
            "experiments", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["experiments"] = module
        spec.loader.exec_module(module)
    return sys.modules["experiments"]


#: What --help lists under which title, in the order of a user's work.
GROUPS = {
    "See": ("demo", "quickstart"),
    "Measure": ("evaluate", "score", "certify", "detect", "corruptions", "compare", "denoise"),
    "Train": ("train_ebm", "train_classifier", "train_defense", "reproduce"),
    "Use": ("purify", "export", "import_weights"),
}


def commands() -> dict[str, str]:
    """Name → first line of what the command says of itself."""
    folder = Path(next(iter(_experiments().__path__)))
    files = {p.stem: p for p in sorted(folder.glob("*.py")) if p.stem != "__init__"}
    about = {name: ast.get_docstring(ast.parse(path.read_text())) for name, path in files.items()}
    return {name: (text or "").split("\n")[0] for name, text in about.items()}


def main() -> None:
    """``purify-jax``: the commands; ``purify-jax NAME ...``: one of them, with its flags."""
    known = commands()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        width = max(map(len, known))
        print("usage: purify-jax COMMAND [--flags]; purify-jax COMMAND --help lists its flags")
        for title, names in GROUPS.items():
            print(f"\n{title}:", *(f"  {name:{width}}  {known[name]}" for name in names), sep="\n")
        return
    if name == "--version":
        print(f"purify-jax {purify_jax.__version__}")
        return
    if name not in known and name not in ELSEWHERE:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        print(
            f"error: command: got {name!r}{hint}, expected one of {', '.join(known)}",
            file=sys.stderr,
        )
        sys.exit(2)
    module = ELSEWHERE.get(name, f"experiments.{name}")
    sys.argv = [f"purify-jax {name}", *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
