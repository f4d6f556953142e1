"""XLA_FLAGS as this library sets it: what the installed jaxlib knows, and never over the user's own."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from purify_jax import xla

UNKNOWN = "--xla_no_such_flag=1"
ACCEPTED = lambda flags: dict.fromkeys(flags, True)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "")


@pytest.mark.ci
def test_a_flag_that_jaxlib_does_not_know_is_left_out_and_each_is_asked_for_once(monkeypatch):
    xla.add([xla.LEVEL, UNKNOWN])
    assert os.environ["XLA_FLAGS"] == xla.LEVEL
    monkeypatch.setattr(xla, "_asked", None)
    assert xla.known([UNKNOWN, xla.LEVEL]) == [xla.LEVEL]


def test_a_damaged_answer_is_asked_for_again(monkeypatch, tmp_path):
    monkeypatch.setattr(xla, "_asked", ACCEPTED)
    assert xla.known(["--a=1"]) == ["--a=1"]
    (answer,) = (tmp_path / "purify_jax").iterdir()
    assert json.loads(answer.read_text()) == {"--a=1": True}
    answer.write_text("{torn")
    assert xla.known(["--a=1"]) == ["--a=1"]


def test_a_cache_that_cannot_be_written_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(xla, "_asked", ACCEPTED)
    assert xla.known(["--a=1"]) == ["--a=1"]


def test_a_child_that_failed_for_another_reason_is_asked_again(monkeypatch):
    monkeypatch.setattr(xla.sys, "executable", "false")
    assert xla.known([xla.LEVEL]) == []
    monkeypatch.setattr(xla, "_asked", ACCEPTED)
    assert xla.known([xla.LEVEL]) == [xla.LEVEL]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", f"{xla.KERNELS} {xla.LEVEL}"),
        ("--xla_foo=1", f"--xla_foo=1 {xla.KERNELS} {xla.LEVEL}"),
        ("--xla_backend_optimization_level=3", f"--xla_backend_optimization_level=3 {xla.KERNELS}"),
    ],
)
def test_what_the_user_gave_stays(given, expected, monkeypatch):
    monkeypatch.setattr(xla, "_asked", ACCEPTED)
    monkeypatch.setattr(xla, "_cpu_only", lambda: True)
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setenv("PURIFY_JAX_XLA_FLAGS", "off")
    xla.set_flags()
    assert os.environ["XLA_FLAGS"] == given
    monkeypatch.delenv("PURIFY_JAX_XLA_FLAGS")
    xla.set_flags()
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize("plugin", ["jax_plugins", "libtpu"])
def test_an_accelerators_plugin_is_seen_and_jax_platforms_asked_first(plugin, monkeypatch):
    monkeypatch.setattr(xla.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == plugin and found("os"))
    assert not xla._cpu_only()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert xla._cpu_only()
    monkeypatch.setattr(xla.platform, "machine", lambda: "arm64")
    assert not xla._cpu_only()
    monkeypatch.setattr(xla.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert xla._cpu_only()


@pytest.mark.ci
def test_a_process_compiles_what_the_variable_says(tmp_path):
    """A convolution is Eigen's where the flag was set."""
    program = """
import os, purify_jax as pj, jax, jax.numpy as jnp
from purify_jax.networks.convolution import convolve
text = jax.jit(convolve).lower(jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 8))).compile().as_text()
print("ynn" in text, os.environ["XLA_FLAGS"])
"""
    given = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PURIFY_JAX_XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | given,
        capture_output=True,
        text=True,
        check=True,
    )
    uses_ynnpack, _, flags = done.stdout.strip().partition(" ")
    assert xla.KERNELS not in flags or uses_ynnpack == "False"
    assert set(flags.split()) <= {xla.KERNELS, xla.LEVEL}
