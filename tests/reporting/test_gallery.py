"""The image browser's content: five images whose outcomes are known, one of each kind."""

import base64
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purify_jax as pj
from purify_jax.purifiers.step_rules import Constant
from purify_jax.reporting import gallery as galleries
from purify_jax.reporting import report

#: Brightness of (clean, attacked), and the class; two steps of 0.1 make every image brighter.
IMAGES = [(0.6, 0.4, 1), (0.8, 0.2, 1), (0.7, 0.65, 1), (0.3, 0.35, 0), (0.9, 0.9, 0)]


def brightness_gallery(names=("dark", "bright")):
    """A classifier of brightness, and a purifier that makes 4×4 images brighter without noise."""
    logits = lambda x: 50 * (x.mean((1, 2, 3))[:, None] - 0.5) * jnp.array([-1.0, 1.0])
    brighter = pj.ADP(
        lambda x: jnp.full_like(x, 0.5), Constant(0.2), num_steps=2, noise_scale=0.0, num_restarts=3
    )
    flat = lambda column: np.stack([np.full((4, 4, 1), row[column], np.float32) for row in IMAGES])
    labels = np.array([row[2] for row in IMAGES])
    keys = pj.image_keys(jax.random.key(0), range(len(IMAGES)))
    attacked = {"strong": flat(1), "none": flat(0)}
    defense = pj.Defense(brighter, logits)
    return galleries.gallery(defense, keys, flat(0), labels, attacked, class_names=names)


def test_outcomes_are_those_of_the_three_answers():
    content = brightness_gallery().content
    cases = [case for case in content["cases"] if case["attack"] == 0]
    assert [case["outcome"] for case in cases] == ["saved", "lost", "unmoved", "harmed", "wrong"]
    assert set(galleries.OUTCOMES) == {case["outcome"] for case in cases}
    # Nobody attacked in the second row of cases, but purification still turns the dark image.
    others = [case["outcome"] for case in content["cases"] if case["attack"] == 1]
    assert others == ["unmoved", "unmoved", "unmoved", "unmoved", "wrong"]


def test_each_step_has_its_picture_and_its_numbers():
    content = brightness_gallery().content
    case = content["cases"][0]
    levels = np.frombuffer(base64.b64decode(case["path"]), np.uint8).reshape(3, 16)
    assert levels[:, 0].tolist() == [102, 128, 153]  # 0.4, 0.5 and 0.6 of 255
    assert content["steps"] == [0, 1, 2]
    assert case["sizes"] == [None, "0.2", "0.2"]
    assert case["norms"] == [None, "2", "2"]  # sixteen pixels of 0.5
    chances = [row[1] for row in case["probabilities"]]
    assert chances == pytest.approx([0.0, 0.5, 1.0], abs=1e-3)
    assert case["answer"] == pytest.approx([0.0, 1.0], abs=1e-3)
    assert content["restarts"] == "3 purified copies"
    assert content["factor"] == galleries.amplification(0.6) == 1


@pytest.mark.parametrize(("largest", "factor"), [(0.1, 5), (8 / 255, 15), (0.0, 100), (1.0, 1)])
def test_the_largest_difference_fills_the_range(largest, factor):
    assert galleries.amplification(largest) == factor


def test_names_cannot_leave_their_place():
    found = brightness_gallery(names=("</script><b>", "&amp;"))
    assert not set("<>&") & set(found.json)
    assert json.loads(found.json)["classes"] == ["</script><b>", "&amp;"]


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (256, 256, 3)])
def test_pages_stay_below_three_megabytes(shape, tmp_path):
    """With noise, which no encoding makes smaller: as many images as fit, at most 64."""
    count = galleries.how_many(shape, classes=10, attacks=1, steps=6)
    assert count == {28: 64, 32: 64, 256: 1}[shape[0]]
    images = np.random.default_rng(0).random((count, *shape), np.float32)
    labels = np.zeros(count, int)
    keys = pj.image_keys(jax.random.key(0), range(count))
    purifier = pj.ADP(jnp.zeros_like, Constant(0.1), num_steps=5, num_restarts=1)
    defense = pj.Defense(purifier, lambda x: x.reshape(len(x), -1)[:, :10])
    found = galleries.gallery(defense, keys, images, labels, {"a": images})
    page = report.write_report(tmp_path / "r.html", "T", "", [report.Section("G", gallery=found)])
    assert len(found.content["images"]) == count
    assert page.stat().st_size < 3_000_000
