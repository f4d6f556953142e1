"""Files for the binaries (models, images, saved images), each with one thing that is not what it should be."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import workplace
from PIL import Image
from safetensors import safe_open


class Case(NamedTuple):
    """A command, what it is expected to end as ("either": one line or success), and what is wrong."""

    binary: str
    arguments: list[str]
    expected: str
    what: str


_JUNK = [
    None,
    True,
    -3,
    2.5,
    10**30,
    -1e-9,
    "",
    "abc",
    "4",
    [],
    [0],
    [-1],
    {},
    [1, "x"],
    [10**9] * 3,
    [8] * 2000,
]
#: Place in the header → values that it must refuse ("missing" is one).
_HEADER = {
    ("format",): ["other", ""],
    ("role",): ["judge", "", "Energy", "classifier"],
    ("image_shape",): [j for j in _JUNK if j != [8, 8, 1]],
    ("image_shape", 0): [0, -1, 2.5, "8", None, 10**9, 9],
    ("network",): [None, 3, [], {}, "abc"],
    ("network", "name"): ["Nope", "", None, 3, "WideResNet"],
    ("network", "features"): [*_JUNK, 8, [9], [8] * 9, [10**9]],
    ("network", "num_outputs"): ["x", 0, -1, 2.5, [1]],
    ("network", "colour"): [1, None],
    ("network", "dtype"): ["float33", 3, None, ""],
    ("metadata",): [None, 3, [], "abc"],
    ("metadata", "dataset"): [3, [], {}],
    ("metadata", "num_classes"): [0, -1, 2.5, "ten", None],
    ("metadata", "purification"): [3, [], "x", None],
    ("metadata", "training"): [3, [], "x", None],
    ("metadata", "training", "scale"): ["huge", 3, None, ""],
    ("metadata", "training", "sigma_min"): [0, -1, "x", None, []],
    ("metadata", "purification", "method"): ["magic", 3, None, ""],
    ("metadata", "purification", "curvature"): ["flat", 3, None],
    ("metadata", "purification", "num_steps"): [0, -1, 2.5, "x", None, 10**9, True],
    ("metadata", "purification", "num_restarts"): [0, -1, 2.5, "x", None, 10**9],
    ("metadata", "purification", "colour"): [1],
    **{("metadata", "purification", n): [-1, "x", None, [], True] for n in ("rate", "max_step", "noise_scale", "stop_threshold")},
}  # fmt: skip


def _header(chance, place, folder) -> Case:
    with safe_open(place.score_model, "numpy") as file:
        texts = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path = folder / "m.safetensors"
    how = chance.random()
    expected = "refused"
    if how < 0.1:
        what, expected = _bytes(chance, place.score_model, path)
    elif how < 0.3:
        what = _damage_tensor(chance, tensors)
        path.write_bytes(safetensors.numpy.save(tensors, texts))
    else:
        where = chance.choice(sorted(_HEADER, key=str))
        value = chance.choice(_HEADER[where])
        what = f"header {'.'.join(map(str, where))} = {value!r}"[:80]
        if len(where) == 1:
            texts[where[0]] = value if isinstance(value, str) else json.dumps(value)
        else:
            whole = json.loads(texts[where[0]])
            inner = whole
            for step in where[1:-1]:
                inner = inner[step]
            inner[where[-1]] = value
            texts[where[0]] = json.dumps(whole)
        path.write_bytes(safetensors.numpy.save(tensors, texts))
    out = folder / "out"
    place = place._replace(score_model=path)
    binary = chance.choice(["purify", "export", "certify"])
    return Case(binary, workplace.commands(place, out)[binary], expected, what)


def _damage_tensor(chance, tensors) -> str:
    name = chance.choice(sorted(tensors))
    bad = lambda value: np.where(np.arange(tensors[name].size) == 0, value, tensors[name].ravel())
    changes = {
        "missing": None,
        "NaN": bad(np.nan).reshape(tensors[name].shape).astype(np.float32),
        "infinite": bad(np.inf).reshape(tensors[name].shape).astype(np.float32),
        "integers": tensors[name].astype(np.int32),
        "flat": tensors[name].reshape(-1, 1, 1),
        "empty": tensors[name][:0],
    }
    how = chance.choice(sorted(changes))
    if changes[how] is None:
        del tensors[name]
    else:
        tensors[name] = changes[how]
    return f"tensor {name}: {how}"


def _bytes(chance, source: Path, target: Path) -> tuple[str, str]:
    content = bytearray(source.read_bytes())
    if chance.random() < 0.5:
        size = chance.randrange(len(content))
        target.write_bytes(content[:size])
        return f"cut off at {size} bytes", "refused"
    for _ in range(5):
        content[chance.randrange(len(content))] = chance.randrange(256)
    target.write_bytes(content)
    return "five bytes changed", "either"  # they may all lie in the weights


def _image(chance, place, folder) -> Case:
    folder = folder / "in"
    folder.mkdir()
    path = folder / "a.png"
    fine = (place.images / "0.png").read_bytes()
    size = (chance.randrange(1, 20), 9)
    kinds = {
        "empty": lambda: path.write_bytes(b""),
        "noise": lambda: path.write_bytes(chance.randbytes(200)),
        "cut off": lambda: path.write_bytes(fine[: len(fine) // 2]),
        "another size": lambda: Image.fromarray(np.zeros(size, np.uint8)).save(path),
        "a folder": path.mkdir,
        "html": lambda: path.write_text("<html></html>"),
        "huge": lambda: path.write_bytes(
            fine[:16] + b"\x00\x01\x00\x00\x00\x01\x00\x00" + fine[24:]
        ),
    }
    what = chance.choice(sorted(kinds))
    kinds[what]()
    arguments = workplace.commands(place._replace(images=folder), folder / "out")["purify"]
    return Case("purify", arguments, "refused", f"the only image is {what}")


def _saved(chance, place, folder) -> Case:
    with np.load(place.adversarial) as archive:
        arrays = {name: archive[name] for name in archive.files}
    images = arrays["adversarial"]
    changes = {
        "no labels": lambda: arrays.pop("labels"),
        "no images": lambda: arrays.pop("adversarial"),
        "NaN": lambda: arrays.update(adversarial=images * np.nan),
        "0 to 255": lambda: arrays.update(adversarial=images * 255),
        "one label less": lambda: arrays.update(labels=arrays["labels"][:-1]),
        "a label too large": lambda: arrays.update(labels=arrays["labels"] + 8),
        "labels are numbers": lambda: arrays.update(labels=arrays["labels"] + 0.5),
        "none": lambda: arrays.update({k: v[:0] for k, v in arrays.items() if np.ndim(v)}),
        "channels first": lambda: arrays.update(adversarial=np.moveaxis(images, -1, 1)),
        "outside the ball": lambda: arrays.update(clean=1 - arrays["clean"]),
        "a norm that is none": lambda: arrays.update(norm="l7"),
        "epsilon negative": lambda: arrays.update(epsilon=-1.0),
        "epsilon a text": lambda: arrays.update(epsilon="x"),
        "objects": lambda: arrays.update(labels=np.array([{}, {}, {}], object)),
        "texts": lambda: arrays.update(adversarial=np.array(["a"] * 3)),
    }  # fmt: skip
    path = folder / "saved.npz"
    what = chance.choice(sorted(changes))
    changes[what]()
    np.savez(path, **arrays)
    arguments = workplace.commands(place._replace(adversarial=path), folder / "out")["score"]
    return Case("score", arguments, "refused", f"saved images: {what}")


MAKERS = (_header, _header, _image, _saved)
