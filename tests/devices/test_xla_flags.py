"""XLA_FLAGS as this library sets it: where it is known and of use, and never over the user's own."""

import importlib.util
import os
import subprocess
import sys

import jaxlib
import pytest
from conftest import ROOT

from purify_jax.xla import flags as xla_flags
from purify_jax.xla.flags import KERNELS, LEVEL, chosen

AVX2 = "fpu sse2 fma avx avx2"
BOTH = f"{KERNELS}= {LEVEL}=1"


@pytest.mark.parametrize(
    ("given", "jaxlib", "machine", "features", "cpu_only", "expected"),
    [
        ("", "0.9.0", "x86_64", AVX2, False, f"{KERNELS}="),
        ("", "0.9.0", "x86_64", AVX2, True, BOTH),
        ("--xla_foo=1", "0.10.2", "AMD64", AVX2, True, f"--xla_foo=1 {BOTH}"),
        (f"{KERNELS}=DOT", "0.10.2", "x86_64", AVX2, True, f"{KERNELS}=DOT {LEVEL}=1"),
        (f"{LEVEL}=3", "0.10.2", "x86_64", AVX2, True, f"{LEVEL}=3 {KERNELS}="),
        (f" {LEVEL}=3", "0.10.2", "arm64", "", True, f" {LEVEL}=3"),
        ("", "0.8.3", "x86_64", AVX2, False, ""),
        ("", "0.8.3", "x86_64", AVX2, True, f"{LEVEL}=1"),
        ("", "0.11.0", "x86_64", AVX2, True, ""),
        ("", "0.10.2", "x86_64", AVX2 + " avx512f", True, BOTH),
        ("", "0.10.2", "arm64", AVX2, False, ""),
        ("", "0.10.2", "x86_64", "", False, ""),
        ("", "", "x86_64", AVX2, True, ""),
    ],
)  # fmt: skip
def test_a_flag_is_added_where_it_is_known_and_of_use(
    given, jaxlib, machine, features, cpu_only, expected
):
    assert chosen(given, jaxlib, machine, features, cpu_only) == expected


@pytest.mark.parametrize("plugin", ["jax_plugins", "libtpu"])
def test_an_accelerators_plugin_is_seen_and_jax_platforms_asked_first(plugin, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == plugin and found("os"))
    assert not xla_flags._cpu_only()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert xla_flags._cpu_only()
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert xla_flags._cpu_only()


def test_the_installed_version_is_found_without_importing_it():
    assert xla_flags._jaxlib() == jaxlib.version.__version__


@pytest.mark.parametrize("given", ["", f"{KERNELS}=LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"])
def test_a_process_compiles_what_the_variable_says(given):
    """A convolution is Eigen's where the flag was set, and the user's choice where there was one."""
    program = """
import os, purify_jax as pj, jax, jax.numpy as jnp
from purify_jax.networks.convolution import convolve
text = jax.jit(convolve).lower(jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 8))).compile().as_text()
print(os.environ["XLA_FLAGS"], "ynn" in text)
"""
    found = xla_flags._jaxlib(), xla_flags.platform.machine(), xla_flags._features()
    flags = chosen(given, *found, cpu_only=True)
    env = {
        **os.environ,
        "XLA_FLAGS": given,
        "PURIFY_JAX_XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.removesuffix("\n").rpartition(" ")[0] == flags
    if flags.startswith(f"{KERNELS}= "):
        assert done.stdout.endswith(" False\n")
