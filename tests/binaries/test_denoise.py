"""denoise as a user runs it: the figures of the library's own table, and bad input in one line."""

import json

import jax
import numpy as np
import pytest

import purify_jax as pj


@pytest.mark.ci
def test_the_table_is_the_librarys_and_has_a_sheet(run_binary, model_files, tmp_path):
    done = run_binary(
        "denoise", f"--score_model={model_files[0]}", "--images=20", "--batch_size=8", "--sigmas=0.1,0.3",
        "--seed=3", f"--workdir={tmp_path}",
    )  # fmt: skip
    found = json.loads((tmp_path / "results.json").read_text())["psnr"]
    images = pj.data.load_split("digits", "test").take(20).batch(np.arange(20))[0]
    purifiers = [
        pj.models.model_purifier(pj.load_model(model_files[0]), method="denoise", noise_scale=sigma)
        for sigma in (0.1, 0.3)
    ]
    for index, (row, purifier) in enumerate(zip(found, purifiers, strict=True)):
        key = jax.random.fold_in(jax.random.key(3), index)
        noisy = pj.training.denoising.noisy(key, images, row["sigma"])
        # The purifier refuses values outside [0, 1] unless it is traced.
        denoised = jax.jit(lambda x, p=purifier: p(pj.image_keys(key, np.arange(20)), x)[0][0])(
            noisy
        )
        expected = pj.training.denoising.psnr(denoised.clip(0, 1), images).mean()
        assert row["denoised"] == pytest.approx(float(expected), abs=2e-3)
    assert [row["sigma"] for row in found] == [0.1, 0.3]
    assert "best blur" in done.stdout
    assert (tmp_path / "figures" / "denoised.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.html").read_text().count("data:image/png;base64,") == 1
