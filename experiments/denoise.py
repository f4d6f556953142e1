"""How well a score network denoises: decibels at several noise levels, beside the best blur.

purify-jax denoise --score_model=runs/quickstart/score_model.safetensors --workdir=runs/denoise

One step to the posterior mean, x + σ²·s(x, σ); PSNR, the mean over images of −10 log₁₀ of the mean squared
error. A network that does not beat the blur has learned nothing to purify with. Writes results.json,
report.html and figures/denoised.png.
"""

import math

import numpy as np
from absl import flags

import purify_jax as pj
from experiments.common import cli, flagging, loading
from experiments.common.workdirs import claim_workdir
from purify_jax.checks import InputError

loading.define_score_model()
flags.DEFINE_string("dataset", None, "Data set (default: the model's).")
flags.DEFINE_string("split", "test", "Split, or a slice such as test[:512].")
flags.DEFINE_integer("images", 512, "Images, from the start of the split.")
flags.DEFINE_integer("batch_size", 64, "Images side by side.")
flags.DEFINE_integer("seed", 0, "Seed of the noise.")
flags.DEFINE_list("sigmas", ["0.05", "0.1", "0.25", "0.5"], "Noise, in units of a pixel's range.")
flags.DEFINE_string("workdir", None, "Folder for the report.", required=True)
flagging.define_image_size()
flagging.define_data()
FLAGS = flags.FLAGS
#: Images on the sheet, one below the other.
_SHOWN = 6


def main(argv: list[str]) -> None:
    """Flags in, a table and a sheet out."""
    del argv
    sigmas = _sigmas()
    model = loading.read_score_model()
    dataset = loading.load_dataset(model, "model").take(FLAGS.images)
    names = ("score_model", "model", "dataset", "split", "images", "batch_size", "seed", "sigmas")
    settings = loading.values(*names)
    workdir = claim_workdir(FLAGS.workdir, settings, "settings.json")
    images, _ = dataset.batch(np.arange(len(dataset)))
    denoise = pj.Partial(_denoise, pj.models.noise_score(model))
    rows = pj.training.denoising.table(
        denoise, loading.key(), np.asarray(images), sigmas, FLAGS.batch_size
    )
    _write(workdir, settings, rows, _sheet(denoise, images[:_SHOWN], sigmas))


def _sigmas() -> list[float]:
    flagging.check_chosen("sigmas")
    try:
        sigmas = [float(text) for text in FLAGS.sigmas]
    except ValueError:
        sigmas = [0.0]
    if not all(0 < sigma < math.inf for sigma in sigmas):
        raise InputError(f"sigmas: got {','.join(FLAGS.sigmas)}, expected positive numbers")
    return sigmas


def _denoise(score, noisy, sigmas):
    """Tweedie's formula (Robbins 1956, Efron 2011); all images hold noise of the same σ."""
    sigma = sigmas[0]
    return noisy + sigma**2 * score(noisy, sigma)


def _sheet(denoise, images, sigmas: list[float]) -> bytes:
    import jax
    import jax.numpy as jnp

    run, columns, titles = jax.jit(denoise), [np.asarray(images)], ["clean"]
    for index, sigma in enumerate(sigmas):
        key = jax.random.fold_in(loading.key(), index)
        noisy = pj.training.denoising.noisy(key, jnp.asarray(images), sigma)
        columns += [np.asarray(noisy), np.asarray(run(noisy, jnp.full(len(images), sigma)))]
        titles += [f"σ = {sigma:g}", "denoised"]
    return pj.reporting.plots.image_grid(list(zip(*columns, strict=True)), titles)


def _write(workdir, settings: dict, rows: list, sheet: bytes) -> None:
    columns = ["σ", "noisy", "best blur", "denoised", "blur's width, pixels"]
    cells = [
        [f"{r['sigma']:g}", *(f"{r[n]:.2f}" for n in ("noisy", "blur", "denoised")), f"{r['blur_width']:g}"]
        for r in rows
    ]  # fmt: skip
    ahead = [f"{r['denoised'] - r['blur']:+.1f} dB at σ = {r['sigma']:g}" for r in rows]
    pj.reporting.pages.write_results(
        workdir,
        title="Denoising",
        summary=f"PSNR in decibels, {settings['images']} images of {settings['dataset']} ({settings['split']}); "
        "the blur's width is the best for these images.",
        columns=columns,
        rows=cells,
        sections=[
            pj.reporting.Section(
                "Peak signal-to-noise ratio", "Higher is better.", columns, cells, figure=sheet,
                alt="Images, with noise of every level and denoised in one step.", pictures=True,
            )
        ],
        content={"settings": settings, "psnr": rows},
        seed=settings["seed"],
        figures={"denoised": sheet},
        verdict=[f"Against the best blur: {'; '.join(ahead)}."],
    )  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
