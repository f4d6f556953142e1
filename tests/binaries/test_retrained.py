"""A model file that was written again: the same command in the same work directory says so, and never the old answer."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import purify_jax as pj

COMMANDS = {
    "evaluate": ["--suite=clean", "--epsilon=0.1", "--probe_images=0", "--images=8"],
    "certify": ["--images=2", "--n0=4", "--n=20", "--samples_at_once=10"],
    "corruptions": ["--images=8", "--corruptions=contrast"],
    "detect": ["--images=4", "--calibration_images=8", "--epsilon=0.1", "--steps=1", "--eot=1"],
    "compare": ["--images=4", "--epsilon=0.1", "--steps=1", "--eot=1", "--draws=1", "--only=none",
                "--notransfer"],
    "score": [],
}  # fmt: skip


@pytest.fixture
def files(models, tmp_path):
    """An energy model, a classifier, and a function that writes the classifier with all weights zero."""
    paths = [tmp_path / "score_model.safetensors", tmp_path / "classifier.safetensors"]
    for path, model in zip(paths, models, strict=True):
        pj.models.save_model(path, model)
    zeros = dataclasses.replace(
        models[1], variables=jax.tree.map(np.zeros_like, models[1].variables)
    )
    return *paths, lambda: pj.models.save_model(paths[1], zeros)


@pytest.mark.ci
@pytest.mark.parametrize("name", COMMANDS)
def test_a_classifier_that_was_trained_again_is_not_the_first_one(
    run_binary, refusal, files, tmp_path, name
):
    score_model, classifier, train_again = files
    few = ["--num_steps=1", "--num_restarts=1"]
    both = [f"--score_model={score_model}", f"--classifier={classifier}"]
    command = [name, *both, *few, *COMMANDS[name]]
    if name == "score":
        test = pj.load_split("digits", "test[:8]")
        np.savez(tmp_path / "a.npz", adversarial=test.images, labels=test.labels)
        command += [f"--images={tmp_path / 'a.npz'}", "--draws=1"]
    else:
        command.append("--noprogress")
    run_binary(*command, f"--workdir={tmp_path / 'w'}")
    results = (tmp_path / "w" / "results.json").read_bytes()
    train_again()
    line = refusal(*command, f"--workdir={tmp_path / 'w'}")
    assert "belongs to another config (made_with." in line
    assert "differs: sha256 " in line
    assert (tmp_path / "w" / "results.json").read_bytes() == results
    if name == "evaluate":  # In another folder: all weights zero say class 0.
        run_binary(*command, f"--workdir={tmp_path / 'new'}")
        found = json.loads((tmp_path / "new" / "results.json").read_text())
        labels = pj.load_split("digits", "test[:8]").labels
        average = found["summary"]["undefended"]["average"][0]
        assert average == np.mean(labels == 0)
