"""The random number generators that somebody's PyTorch code may draw from: found, seeded, restored.

PyTorch's default generator of the CPU and of the module's device, NumPy's and Python's global ones, and every
generator that is reachable from the code: an attribute of a module, an item of a container, a variable that a
function has closed over, a global name that it uses.
"""

import contextlib
import ctypes
import functools
import hashlib
import random
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

#: Global generators belong to the process, so one call at a time draws from them.
LOCK = threading.RLock()
#: Attributes of attributes of ... that are followed.
_DEPTH = 8


class Generator(NamedTuple):
    """One generator: what it is called, and how its state is read, written and set by a 64-bit seed.

    glance: tells states apart in microseconds, where reading and writing them takes long.
    """

    name: str
    read: Callable[[], object]
    write: Callable[[Any], object]
    seed: Callable[[int], object]
    glance: Callable[[], bytes] | None = None

    def digest(self) -> bytes:
        """Tells states apart."""
        return hashlib.sha256(repr(_plain(self.read())).encode()).digest()


def _plain(state: object) -> object:
    if isinstance(state, Mapping):
        return {name: _plain(value) for name, value in state.items()}
    if isinstance(state, (tuple, list)):
        return [_plain(value) for value in state]
    return bytes(np.asarray(state)) if hasattr(state, "shape") else state


class Generators:
    """All generators that ``function`` may draw from; ``device`` is that of its parameters."""

    def __init__(self, function: object, device: "torch.device"):
        import torch

        self.idle: set[str] = set()
        self.all = [_of_torch("torch", torch.default_generator)]
        if device.type not in ("cpu", "meta"):
            backend = torch.get_device_module(device)
            place = () if device.type == "mps" else (device,)
            read = functools.partial(backend.get_rng_state, *place)
            write = lambda state: backend.set_rng_state(state, *place)
            self.all.append(Generator(f"torch ({device.type})", read, write, backend.manual_seed))
        self.all.append(_of_numpy("numpy", np.random.mtrand._rand))
        self.all.append(Generator("random", random.getstate, random.setstate, random.seed))
        shared = (torch.default_generator, np.random.mtrand._rand, random._inst)  # type: ignore[attr-defined]
        for path, found in reachable(function):
            own = None if any(found is each for each in shared) else _own(path, found)
            if own is not None:
                self.all.append(own)

    @contextlib.contextmanager
    def seeded(self, source: bytes, used: dict[str, set[bytes]] | None = None) -> Iterator[None]:
        """All generators seeded from ``source``, each by another number, and restored at the end.

        A slow generator that no measured call has drawn from is only watched. If a call draws from it all the
        same, a warning says so, and later calls seed it.

        ``used``: of a call that measures, collects those that were drawn from: name → digests of the states
        that they ended in.
        """
        # A generator's number is that of its place among all, whichever of them are idle.
        digest = hashlib.shake_128(source).digest(8 * len(self.all))
        with LOCK:
            chosen = [g for g in self.all if used is not None or g.name not in self.idle]
            states = [generator.read() for generator in chosen]
            seen = [
                (g, g.glance())
                for g in self.all
                if g.glance and used is None and g.name in self.idle
            ]
            try:
                for place, generator in enumerate(self.all):
                    if generator in chosen:
                        number = digest[8 * place : 8 * place + 8]
                        generator.seed(int.from_bytes(number, "little") >> 1)
                begun = [] if used is None else [generator.digest() for generator in chosen]
                yield
                for generator, before in zip(chosen, begun, strict=used is not None):
                    if used is not None and (ended := generator.digest()) != before:
                        used.setdefault(generator.name, set()).add(ended)
            finally:
                for generator, state in zip(chosen, states, strict=True):
                    generator.write(state)
            for generator, before in seen:
                if generator.glance and generator.glance() != before:
                    self.idle.discard(generator.name)
                    warnings.warn(
                        f"module: drew from {generator.name}, which it did not when it was measured; this call "
                        "cannot be repeated, later ones can",
                        stacklevel=2,
                    )

    def measured(self, used: Iterable[str]) -> None:
        """Notes which slow generators the measured calls have not drawn from."""
        self.idle = {g.name for g in self.all if g.glance is not None} - set(used)


def _of_torch(name: str, generator: "torch.Generator") -> Generator:
    return Generator(name, generator.get_state, generator.set_state, generator.manual_seed)


def _of_numpy(name: str, found: np.random.RandomState) -> Generator:
    bits, glance = found._bit_generator, None  # type: ignore[attr-defined]
    if isinstance(bits, np.random.MT19937):
        # 624 words and a position; NumPy's own way to them takes 0.1 ms.
        glance = lambda: ctypes.string_at(bits.ctypes.state_address, 4 * 625)
    seed = lambda number: found.seed(number % 2**32)
    return Generator(name, found.get_state, found.set_state, seed, glance)


def _own(path: str, found: object) -> Generator | None:
    import torch

    name = f"{type(found).__module__.split('.')[0]} generator {path}"
    if isinstance(found, torch.Generator):
        return _of_torch(name, found)
    if isinstance(found, np.random.RandomState):
        return _of_numpy(name, found)
    if isinstance(found, np.random.Generator):
        bits = found.bit_generator
        write = lambda state: setattr(bits, "state", state)
        fresh = lambda seed: write(type(bits)(seed).state)  # type: ignore[call-arg]
        return Generator(name, lambda: bits.state, write, fresh)
    if isinstance(found, random.Random):
        return Generator(name, found.getstate, found.setstate, found.seed)
    return None


def reachable(root: object) -> Iterator[tuple[str, object]]:
    """(path, object) of everything that the code ``root`` holds, up to a depth; no tensors, no packages.

    Modules of PyTorch, other objects by their attributes, containers by their items, functions by what
    they have closed over and by the global names that they use.
    """
    import torch

    seen: set[int] = set()
    # Packages that no generator of a user's lies in, whose objects lead everywhere.
    closed = (
        "torch",
        "numpy",
        "jax",
        "jaxlib",
        "builtins",
        "threading",
        "weakref",
        "types",
        "logging",
    )

    def visit(path: str, value: object, depth: int) -> Iterator[tuple[str, object]]:
        plain = (str, bytes, int, float, complex, type(None), torch.Tensor, np.ndarray)
        if depth > _DEPTH or id(value) in seen or isinstance(value, plain):
            return
        seen.add(id(value))
        yield path, value
        for name, item in _inside(value, closed):
            yield from visit(f"{path}.{name}" if path else name, item, depth + 1)

    yield from visit("", root, 0)


def _inside(value: object, closed: tuple[str, ...]) -> list[tuple[str, object]]:
    import torch

    if isinstance(value, Mapping):
        return [(str(name), item) for name, item in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(str(i), item) for i, item in enumerate(value)]
    if isinstance(value, functools.partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    found: list[tuple[str, object]] = []
    if (owner := getattr(value, "__self__", None)) is not None and not hasattr(owner, "__path__"):
        found.append(("", owner))
    function = getattr(value, "__func__", value)
    if (code := getattr(function, "__code__", None)) is not None:
        cells = getattr(function, "__closure__", None) or ()
        for name, cell in zip(code.co_freevars, cells, strict=False):
            with contextlib.suppress(ValueError):  # a cell that is still empty
                found.append((name, cell.cell_contents))
        spread = getattr(function, "__globals__", {})
        used = [(name, spread[name]) for name in code.co_names if name in spread]
        found += [(name, item) for name, item in used if _is_held(item)]
        return found
    package = str(type(value).__module__).split(".")[0]
    is_module = isinstance(value, torch.nn.Module)
    if isinstance(value, type) or (package in closed and not is_module):
        return found
    attributes = dict(getattr(value, "__dict__", {}))
    if is_module:
        attributes.update(attributes.pop("_modules", {}))
        attributes = {n: a for n, a in attributes.items() if n not in _internals()}
    found += [(name, item) for name, item in attributes.items() if isinstance(name, str)]
    if package not in closed:  # the methods of a user's class may use global names
        methods = [
            m for c in type(value).__mro__ for m in vars(c).values() if hasattr(m, "__code__")
        ]
        found += [(m.__name__, m) for m in methods if str(m.__module__).split(".")[0] not in closed]
    return found


@functools.cache
def _internals() -> frozenset[str]:
    """What every module has: parameters, buffers, hooks."""
    import torch

    return frozenset(vars(torch.nn.Module()))


def _is_held(item: object) -> bool:
    """Whether a global name is data that code holds, and no package, class or library function."""
    import torch

    kinds = (torch.nn.Module, torch.Generator, np.random.Generator, np.random.RandomState)
    own = isinstance(item, (*kinds, random.Random))
    return own or (hasattr(item, "__code__") and "site-packages" not in item.__code__.co_filename)
