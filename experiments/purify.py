"""Purifies an image file or a folder of images.

purify-jax purify --model=digits --input=images/ --workdir=out

Reads every format that Pillow reads, as an image viewer shows it. Writes purified/<name>.png (the mean over
restarts), sheet.png (before and after), and lists images that could not be read.
"""

from pathlib import Path

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, loading, locks
from purify_jax.atomic import check_output, write_atomically
from purify_jax.checks import InputError

loading.define_score_model()
flags.DEFINE_string("input", None, "Image file, or folder of images.", required=True)
flags.DEFINE_string("workdir", None, "Folder for the purified images.", required=True)
flags.DEFINE_integer("seed", 0, "Seed of the noise.")
flags.DEFINE_integer("batch_size", 64, "Images side by side.")
loading.define_purifier()
flagging.define_image_size()
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Image files in, image files out."""
    del argv
    check_output("workdir", FLAGS.workdir, folder=True)
    model = loading.read_score_model()
    purifier = loading.chosen_purifier(model)
    names, images, skipped = _read(Path(FLAGS.input), model.image_shape)
    locks.hold("workdir", FLAGS.workdir)
    purified = pj.evaluation.map_images(
        pj.Partial(_mean_over_restarts, purifier),
        loading.key(),
        images,
        execution=pj.Execution(batch_size=FLAGS.batch_size, progress=True),
        task="purifying",
    )
    workdir = Path(FLAGS.workdir)
    for name, image in zip(names, purified, strict=True):
        _save(workdir / "purified" / f"{name}.png", image)
    shown = range(min(8, len(images)))
    sheet = pj.reporting.plots.image_grid(
        [[images[i], purified[i]] for i in shown], ["before", "after"]
    )
    write_atomically(workdir / "sheet.png", sheet)
    print(f"{len(images)} images purified, {skipped} skipped")


def _mean_over_restarts(purifier, keys, images):
    return purifier(keys, images)[0].mean(axis=0)


def _read(source: Path, shape: tuple[int, int, int]) -> tuple[list[str], np.ndarray, int]:
    if source.is_dir():
        files = pj.data.image_files(source)
    elif source.is_file():
        files = [source]
    else:
        raise InputError(f"input: {source} does not exist, expected an image file or a folder")
    names: list[str] = []
    images, skipped = [], 0
    for path in files:
        try:
            image = pj.data.read_image(path, channels=shape[2])
            image = pj.data.central_square(image, FLAGS.image_size)
            if image.shape != tuple(shape):
                hint = f"; --image_size={shape[0]} resizes it" if shape[0] == shape[1] else ""
                raise InputError(f"image: {path} is {image.shape}, expected {tuple(shape)}{hint}")
        except InputError as error:
            if not source.is_dir():
                raise
            print(f"skipped: {error}")
            skipped += 1
            continue
        if path.stem in names:
            raise InputError(
                f"input: two images of {source} are named {path.stem}, expected one of each, as both "
                f"would be written to {path.stem}.png"
            )
        names.append(path.stem)
        images.append(pj.data.to_float(image))
    if not images:
        raise InputError(f"input: {source} holds no readable image of shape {tuple(shape)}")
    return names, np.stack(images), skipped


def _save(path: Path, image: np.ndarray) -> None:
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    write_atomically(path, pj.data.png(pixels))


if __name__ == "__main__":
    cli.run(main)
