"""Tables, reports and figures."""

import base64
import io
import re

import numpy as np
from PIL import Image

from purify_jax import reporting
from purify_jax.reporting import plots, report


def test_text_table_is_aligned():
    found = report.text_table(["attack", "n"], [["clean", 5], ["blind PGD", 1000]])
    assert found.splitlines() == [
        "attack        n",
        "---------  ----",
        "clean         5",
        "blind PGD  1000",
    ]


def test_report_is_self_contained_and_escapes(tmp_path):
    figure = plots.curves([0, 1], {"a": [0.5, 0.7]}, "x", "y", {"a": [(0.4, 0.6), (0.6, 0.8)]})
    sections = [
        report.Section("Table", "a < b", ["name", "value"], [["<script>", "1"]], figure),
        report.Section("Flags", flags=["something is wrong"]),
        report.Section("No flags", flags=[]),
    ]
    page = report.write_report(tmp_path / "r.html", "T", "S", sections, "F").read_text()
    assert page.count("<script>") == 1  # the page's own
    assert "<td>&lt;script&gt;</td>" not in page
    assert '<th scope="row">&lt;script&gt;</th>' in page
    assert page.count("No red flag.") == 1
    assert "something is wrong" in page
    (data,) = re.findall(r"base64,([^\"]+)", page)
    assert base64.b64decode(data) == figure


def test_an_image_grid_shows_the_images():
    """Black above white: the figure's upper tile is dark, the lower one bright."""
    black, white = np.zeros((8, 8, 1)), np.ones((8, 8, 1))
    with Image.open(io.BytesIO(plots.image_grid([[black], [white]], [""]))) as figure:
        pixels = np.asarray(figure.convert("L"))
    height, width = pixels.shape
    assert pixels[height // 4, width // 2] == 0
    assert pixels[3 * height // 4, width // 2] == 255


def test_versions_name_what_numbers_depend_on():
    found = reporting.versions()
    assert {"purify_jax", "jax", "numpy", "python", "device"} <= set(found)
    assert "unknown" not in found.values()
