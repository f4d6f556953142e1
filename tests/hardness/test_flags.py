"""Flags, configs, inputs and outputs: one clear line before any work is done."""

import copy
import os
import re
import struct
import sys
import zlib

import numpy as np
import pytest
from absl import flags
from conftest import ROOT
from ml_collections import ConfigDict
from PIL import Image

import purify_jax as pj
from experiments.common import cli, config_schema, flagging, from_config, workdirs
from experiments.configs import digits
from purify_jax.atomic import check_output, write_atomically
from purify_jax.checks import InputError
from purify_jax.data import read_image
from purify_jax.devices import sharding

CONFIGS = sorted(
    p.stem for p in (ROOT / "experiments/configs").glob("*.py") if p.stem != "__init__"
)


@pytest.fixture
def given(monkeypatch):
    """Flags of a binary, in a set of their own, parsed from arguments as the binaries parse them."""

    def parse(*arguments):
        own = flags.FlagValues()
        # Where a config looks for overrides, and where the one before would still be.
        monkeypatch.setattr(sys, "argv", ["binary", *arguments])
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        counts = "batch_size steps eot eot_at_once samples_at_once probe_images"
        for name in counts.split():
            flags.DEFINE_integer(name, None, "", flag_values=own)
        flags.DEFINE_integer("seed", 0, "", flag_values=own)
        for name in ("noise_scale", "rate"):
            flags.DEFINE_float(name, None, "", flag_values=own)
        flags.DEFINE_float("fraction", 0.1, "", flag_values=own)
        flags.DEFINE_list("only", None, "", flag_values=own)
        flagging.define_config(own)
        monkeypatch.setattr(flagging, "FLAGS", own)
        monkeypatch.setattr(cli.flags, "FLAGS", own)
        return cli._parsed(sys.argv)

    return parse


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--batch_size=0", "batch_size: got 0, expected a whole number >= 1"),
        ("--steps=0", "steps: got 0"),
        ("--eot=0", "eot: got 0"),
        ("--eot_at_once=-4", "eot_at_once: got -4"),
        ("--samples_at_once=0", "samples_at_once: got 0"),
        ("--probe_images=-1", "probe_images: got -1, expected a whole number >= 0"),
        (f"--seed={2**70}", "seed: got 1180591620717411303424"),
        (f"--seed={2**32 + 1}", "seed: got 4294967297"),
        ("--noise_scale=nan", "noise_scale: got nan"),
        ("--noise_scale=-3", "noise_scale: got -3"),
        ("--rate=-0.1", "rate: got -0.1"),
        ("--fraction=1.5", "fraction: got 1.5"),
    ],
)
def test_numbers_of_flags(given, argument, message):
    given(argument)
    with pytest.raises(InputError, match=re.escape(message)):
        cli.check_numbers()
    given("--probe_images=0", "--steps=1")
    cli.check_numbers()


@pytest.mark.parametrize("argument", ["--only=", "--only=ADP,ADP"])
def test_lists_of_flags_name_something_once(given, argument):
    given(argument)
    with pytest.raises(InputError, match="only: got '.*', expected some names, each of them once"):
        flagging.check_chosen("only")
    for fine in ([], ["--only=ADP,MALA"]):
        given(*fine)
        flagging.check_chosen("only")


@pytest.mark.parametrize(
    ("content", "argument", "message"),
    [
        (None, "--config.ebm.stepz=3", "config: cannot be read (AttributeError: .*stepz"),
        (None, "--config.ebm.steps=abc", "config.ebm.steps: got 'abc', expected an integer"),
        (None, "--nonsense", "flags: no flag --nonsense"),
        (None, "--config=/nowhere/x.py", "config: cannot be read (.*No such file"),
        (None, "--config=", "config: cannot be read (.*empty"),
        (
            "",
            "--config=FILE",
            "config: cannot be read (AttributeError: .*no attribute 'get_config'",
        ),
        ("def get_config(", "--config=FILE", "config: cannot be read (SyntaxError: "),
        ("def get_config(): return 1/0", "--config=FILE", "(ZeroDivisionError: division by zero"),
        ("def get_config(): return 3", "--config=FILE", "config: got 3, expected a ConfigDict"),
    ],
)
def test_configs_that_cannot_be_read(given, capsys, tmp_path, content, argument, message):
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
        argument = argument.replace("FILE", str(tmp_path / "mine.py"))
    use = lambda: (given(argument), flagging.training_config("ebm"))
    with pytest.raises((InputError, SystemExit)) as error:
        use()
    text = str(error.value) if error.type is InputError else capsys.readouterr().err.strip()
    assert len(text.splitlines()) == 1
    assert re.search(message.replace("(", r"\("), text), text


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configs_that_ship_are_fine(name):
    module = __import__(f"experiments.configs.{name}", fromlist=["get_config"])
    config = module.get_config()
    sections = [name for name in ("ebm", "classifier", "defense") if name in config]
    assert sections
    for section in sections:
        config_schema.check(config, section)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("ebm", None, "config: lacks ['ebm']"),
        ("ebm", 3, "config.ebm: got 3, expected a section"),
        ("seed", -1, "config.seed: got -1"),
        ("dataset", 3, "config.dataset: got 3, expected a name"),
        ("ebm.steps", None, "config.ebm: lacks ['steps']"),
        ("ebm.steps", "many", "config.ebm.steps: got 'many'"),
        ("ebm.stepz", 3, "config.ebm: got ['stepz']"),
        ("ebm.schedule", "foo", "config.ebm.schedule: got 'foo'"),
        ("ebm.ema_decay", 2, "config.ebm.ema_decay: got 2"),
        ("ebm.ema_decay", float("nan"), "config.ebm.ema_decay: got nan"),
        ("ebm.clip_norm", -1, "config.ebm.clip_norm: got -1"),
        ("ebm.sigma_schedule", "foo", "config.ebm.sigma_schedule: got 'foo'"),
        ("ebm.num_sigmas", 2.5, "config.ebm.num_levels: got 2.5"),
        ("ebm.sigma_min", "x", "config.ebm.sigmas: got 'x'"),
        ("ebm.network", "MLP", "config.ebm.network: got 'MLP', expected a section"),
        ("ebm.network.features", (0,), "config.ebm.network MLP: features: got 0"),
        ("ebm.network.features", (-3,), "config.ebm.network MLP: features: got -3"),
        ("ebm.network.features", "abc", "config.ebm.network MLP: features: got 'abc'"),
        ("ebm.network.name", "Nope", "config.ebm.network: got 'Nope'"),
        ("purification", None, "config: lacks ['purification']"),
        ("purification.method", "magic", "config.purification.method: got 'magic'"),
        ("purification.num_steps", 0, "config.purification.num_steps: got 0"),
        ("purification.noise_scale", -3, "config.purification.noise_scale: got -3"),
        ("attack.norm", "l3", "norm: got 'l3'"),
    ],
)
def test_configs_are_checked_before_anything_is_read(monkeypatch, field, value, message):
    plain = copy.deepcopy(digits.get_config().to_dict())
    *path, last = field.split(".")
    place = plain
    for step in path:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    monkeypatch.setattr(flagging, "FLAGS", type("F", (), {"config": ConfigDict(plain)}))
    with pytest.raises(InputError, match=re.escape(message)):
        flagging.training_config("ebm")


def test_a_config_says_how_training_images_are_purified():
    config = digits.get_config()
    score_model = pj.load_model(ROOT / "pretrained/digits_score_model.safetensors")
    as_stored = from_config.training_purifier(config, score_model)
    config.classifier.purification = {"noise_scale": 0.11, "num_restarts": 7}
    config_schema.check(config, "classifier")
    given = from_config.training_purifier(config, score_model)
    assert given.noise_scale == 0.11 != as_stored.noise_scale
    assert given.num_restarts == as_stored.num_restarts == 1
    assert given.num_steps == as_stored.num_steps
    for wrong, message in (
        ({"noise_scale": -1}, "config.classifier.purification.noise_scale: got -1"),
        ({"sigma": 0.1}, "config.classifier.purification: got ['sigma']"),
        (3, "config.classifier.purification: got 3, expected a section"),
    ):
        del config.classifier.purification
        config.classifier.purification = wrong
        with pytest.raises(InputError, match=re.escape(message)):
            config_schema.check(config, "classifier")


def test_the_quickstart_needs_a_whole_config():
    config = digits.get_config()
    config_schema.check_whole(config)
    del config.attack
    with pytest.raises(InputError, match=r"config: lacks \['attack'\]"):
        config_schema.check_whole(config)


# --- inputs and outputs -----------------------------------------------------------------------


@pytest.mark.ci
def test_two_inputs_of_one_name_are_refused(refusal, tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    arguments = ["--model=digits", f"--input={tmp_path}", f"--workdir={tmp_path / 'out'}"]
    assert refusal("purify", *arguments).startswith("error: input: two images of ")
    assert not (tmp_path / "out").exists()


def _png(width, height, depth=8, rows=b""):
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_an_image_of_gigapixels_is_skipped(tmp_path):
    folder = tmp_path / "test" / "class"
    folder.mkdir(parents=True)
    (folder / "bomb.png").write_bytes(_png(60000, 60000))
    with pytest.raises(InputError, match="bomb.png cannot be read: .*decompression bomb"):
        read_image(folder / "bomb.png")
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(folder / "fine.png")
    assert len(pj.data.load_split("folder", "test", tmp_path)) == 1


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    values = np.array([[0, 257, 25700, 65535]], np.uint16)
    rows = b"\0" + values.astype(">u2").tobytes()
    (tmp_path / "deep.png").write_bytes(_png(4, 1, 16, rows))
    assert read_image(tmp_path / "deep.png")[..., 0].tolist() == [[0, 1, 100, 255]]


def test_outputs_are_checked_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path, folder, message in (
        (tmp_path, False, "output: .* is a folder, expected a file to write"),
        (tmp_path / "file", True, "output: .* is a file, expected a folder to write"),
        (tmp_path / "file" / "x", False, "output: .* cannot be written"),
    ):
        with pytest.raises(InputError, match=message):
            check_output("output", path, folder)
    check_output("output", tmp_path / "file")
    check_output("output", tmp_path / "a" / "b" / "c", folder=True)
    with pytest.raises(InputError, match="output: .* is a folder, expected a file"):
        write_atomically(tmp_path, "x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="output: .* cannot be written"):
        check_output("output", tmp_path / "new")


def test_a_damaged_workdir_is_one_line(tmp_path):
    for damage in (b"{", b"\xff", None):
        path = tmp_path / "config.json"
        path.mkdir() if damage is None else path.write_bytes(damage)
        with pytest.raises(InputError, match=r"workdir: .*config.json is damaged"):
            workdirs.claim_workdir(tmp_path, {"a": 1})
        if damage is not None:
            path.unlink()


@pytest.mark.parametrize(
    "address", ["nonsense", ":80", "host:", "host:http", "host:0", "host:70000"]
)
def test_a_coordinator_has_a_host_and_a_port(address):
    with pytest.raises(InputError, match=f"coordinator: got '{address}', expected host:port"):
        sharding.initialize(address, 2, 0)
    with pytest.raises(InputError, match="num_processes: got 0"):
        sharding.initialize("localhost:80", 0, 0)
