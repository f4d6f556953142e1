"""Flags and fields of configs, each with a value that it may not have: the binary says so in one line."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults import workplace
from tests.faults.harness import ROOT, run

_COUNT = ["0", "-1", "-4", "2.5", "abc", "", "nan", "1e3", "inf"]
_NUMBER = ["nan", "inf", "-inf", "-1", "-1e-9", "abc", ""]
_SEED = ["-1", str(2**32), str(2**70), "0.5", "x"]
_SPLIT = [
    "tset",
    "test[",
    "test[5:2]",
    "test[0:0]",
    "test[a:b]",
    "../x",
    "test[400:]",
    "test[::2]",
    "test[10%:5%]",
]
_FILE = ["/nowhere/x", "/", "/dev/null", str(ROOT / "README.md"), "\x01", "x" * 300]
#: Flag → values that it must refuse.
_FLAGS = {
    **dict.fromkeys(("num_steps", "num_restarts", "batch_size"), _COUNT),
    "noise_scale": _NUMBER,
    "rate": _NUMBER,
    "seed": _SEED,
    "score_model": _FILE,
}
_EVALUATED = {
    **_FLAGS, "images": [*_COUNT, "361", "100000"], "classifier": _FILE, "split": _SPLIT,
    "dataset": ["mnist", "../x", "", "a b", "/"], "image_size": ["9", "0", "-1", "x"], "model": ["nope", "../x", "."],
}  # fmt: skip
_BALL = {"norm": ["l3", "", "2"], "epsilon": _NUMBER, "steps": _COUNT, "eot": _COUNT}
FLAGS = {
    "evaluate": {**_EVALUATED, **_BALL, "draws": _COUNT, "suite": ["nope", ""], "eot_at_once": _COUNT, "surrogate_restarts": _COUNT,
                 "probe_images": _COUNT[1:], "sweep": ["nope", "steps,eot"], "skip": ["", "nope", "Square,Square", "Square,"], "undefended": ["maybe"]},
    "detect": {**_EVALUATED, **_BALL, "calibration_images": [*_COUNT, "10000"], "fraction": [*_NUMBER, "1.5"],
               "false_positive_rate": [*_NUMBER, "0", "1", "2"]},
    "certify": {**_EVALUATED, "sigma": [*_NUMBER, "0"], "n0": [*_COUNT, "21"], "n": _COUNT,
                "alpha": [*_NUMBER, "0", "1"], "samples_at_once": _COUNT},
    "corruptions": {**_EVALUATED, "corruptions": ["", "fog,fog", "rain", "fog,", "../x"],
                    "corruptions_dir": _FILE[:2]},
    "compare": {**_EVALUATED, **_BALL, "draws": _COUNT, "chain_steps": _COUNT, "diffusion_steps": _COUNT,
                "severity": [*_COUNT, "6"], "only": ["", "ADP,ADP", "nope", "ADP,"]},
    "purify": {**_FLAGS, "input": _FILE[:1] + _FILE[2:], "model": ["nope", "../x"], "image_size": ["9", "0", "x"]},
    "denoise": {
        "score_model": _FILE, "model": ["nope", "../x"], "images": _COUNT, "batch_size": _COUNT, "seed": _SEED, "split": _SPLIT,
        "sigmas": ["", "0", "-0.1", "nan", "inf", "x", "0.1,0.1", "0.1,"], "image_size": ["9", "0", "x"],
    },
    "score": {**_FLAGS, "images": _FILE, "draws": _COUNT, "classifier": _FILE},
    "export": {"score_model": _FILE, "classifier": _FILE, "platforms": ["", "abacus", "cpu,"], "output": ["/", "/dev/null/x"]},
    "import_weights": {
        "kind": ["nope", "", "wide_resnet", "edm"], "source": _FILE, "dtype": ["int8", ""],
        "image_shape": ["", "1", "a,b,c", "0,0,0", "28,28", "-1,2,3", "28,28,1,1", "32,32,3"],
        "head_channels": [*_COUNT, "64"], "out": ["/", "/dev/null/x"], "class_names": _FILE,
    },
    "reproduce": {"suite": ["nope", ""], "images": _COUNT, "budget": ["0", "-1", "nan", "inf", "x"], "parts": ["nope", "", "certification,nope"]},
    "experiments.reproduction.exchange": {"results": _FILE[:1] + _FILE[2:], "out": ["/dev/null/x", str(ROOT / "README.md")]},
    "train_ebm": {"start": _FILE, "config": ["nope.py", "/", str(ROOT / "README.md"), ""], "image_size": ["9", "0", "x"]},
    "train_classifier": {"start": _FILE, "score_model": [str(ROOT / "pretrained/digits_score_model.safetensors")], "config": ["nope.py", ""]},
    "train_defense": {"classifier": _FILE, "score_model": _FILE, "config": ["digits", "nope.py"]},
}  # fmt: skip
_FIELD_COUNT = ["0", "-1", "2.5", "abc", "nan", "'x'"]
_FIELD_NUMBER = ["nan", "inf", "-1.0", "abc"]
_TRAINING = {
    "steps": _FIELD_COUNT, "batch_size": _FIELD_COUNT, "learning_rate": _FIELD_NUMBER, "schedule": ["foo", ""],
    "steps_per_dispatch": _FIELD_COUNT, "checkpoint_every": _FIELD_COUNT, "stepz": ["3"],
}  # fmt: skip
_OTHERS = {
    "clip_norm": _FIELD_NUMBER, "ema_decay": [*_FIELD_NUMBER, "2.0"], "network.name": ["Nope", "", "../x"],
    "network.features": ["(0,)", "(-3,)", "'abc'", "(2.5,)", "()"],
}  # fmt: skip
CONFIGS = {
    "train_ebm": {
        **{f"ebm.{k}": v for k, v in {**_TRAINING, **_OTHERS}.items()},
        "ebm.sigma_max": _FIELD_NUMBER, "ebm.sigma_min": [*_FIELD_NUMBER, "0.0"], "ebm.num_sigmas": _FIELD_COUNT,
        "ebm.role": ["judge", "classifier"], "ebm.scale": ["huge"], "ebm.sigma_schedule": ["foo"],
        "ebm.patterns": [*_FIELD_NUMBER, "1.5"], "seed": ["-1", str(2**40), "x"], "dataset": ["../x", "mnist"],
        "train_split": ["nope", "train[5:2]"], "purification.method": ["magic"],
        "purification.num_steps": _FIELD_COUNT, "purification.noise_scale": _FIELD_NUMBER,
        "purification.rate": _FIELD_NUMBER, "purification.curvature": ["flat"], "attack.norm": ["l3"],
        "attack.epsilon": _FIELD_NUMBER, "nothing": ["1"],
    },
    "train_classifier": {
        **{f"classifier.{k}": v for k, v in {**_TRAINING, **_OTHERS}.items()},
        "classifier.network.hidden": _FIELD_COUNT, "classifier.purified": [*_FIELD_NUMBER, "1.5", "0.5"],
    },
    "train_defense": {
        **{f"defense.{k}": v for k, v in _TRAINING.items()},
        "defense.epsilon": _FIELD_NUMBER, "defense.norm": ["l3"], "defense.attack_steps": _FIELD_COUNT,
        "defense.trainable": ["nobody"], "defense.denoising_weight": _FIELD_NUMBER,
        "defense.probe_images": _FIELD_COUNT, "defense.probe_steps": _FIELD_COUNT,
        "defense.purification.method": ["magic"], "defense.purification.noise_scale": _FIELD_NUMBER,
    },
}  # fmt: skip


CHANGES = [
    (binary, f"{prefix}{name}", value)
    for table, prefix in ((FLAGS, "--"), (CONFIGS, "--config."))
    for binary, values in table.items()
    for name, all_of_it in values.items()
    for value in all_of_it
]


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(CHANGES))
def test_a_value_that_a_flag_may_not_have_is_one_line(place, tmp_path_factory, change):
    binary, flag, value = change
    out = workplace.prepare(binary, place, tmp_path_factory.mktemp("out"))
    arguments = workplace.commands(place, out)[binary]
    kept = [a for a in arguments if not a.startswith(f"{flag}=")]
    done = run(binary, *kept, f"{flag}={value}")
    assert done.outcome == "refused", (change, done.err)
