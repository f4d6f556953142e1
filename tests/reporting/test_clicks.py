"""A page in a real browser, clicked through: filters, slider, sorting, keyboard, narrow screens.

With axe-core (``npm install --no-save axe-core@4.14.1``, or PURIFY_AXE=.../axe.min.js) its rules too.
"""

import numpy as np
import pytest
from conftest import AXE, CHROMIUM
from test_gallery import brightness_gallery

from purify_jax.reporting import plots, report

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")

ROWS = [
    ["blind", "0.900 [0.826, 0.945]", "9"],
    ["exact", "0.100 [0.055, 0.174]", "10"],
    ["shared keys, which this has no second figure for", "", "100"],
    ["BPDA", "0.500 [0.404, 0.596]", "8"],
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with every component."""
    figure = plots.histograms({"a": np.geomspace(0.01, 100, 50)}, "energy")
    columns = ["attack", "accuracy of one answer", "passes backward through the purifier"]
    wide = [*columns, *(f"a column with a long name, {i}" for i in range(9))]
    sections = [
        report.Section("Table", "Text.", columns, ROWS, figure, terms=[("passes", "a cost")]),
        report.Section("Wide", "", wide, [[*row, *["0.123"] * 9] for row in ROWS], folded="More"),
        report.Section("Flags", flags=["a flag with_a_name_that_is_" + "very_" * 20 + "long"]),
        report.Section("Images", "Choose one.", gallery=brightness_gallery()),
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.write_report(path, "Title", "Summary.", sections, "seed 0", ["A verdict."])
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        # The sandbox needs rights that a container's user may not have.
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page; at the end no message was written to the console and no error thrown."""
    said, pages = [], []

    def open_page(width=1400, **options):
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request", lambda request: said.append(request.url) if "http" in request.url else None
        )
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []


def names(page):
    return page.locator(".scroll table").first.locator("tbody th").all_text_contents()


@pytest.mark.ci
def test_a_click_sorts_by_number_and_another_turns_it_round(visit):
    page = visit()
    table = page.locator(".scroll table").first
    first = [row[0] for row in ROWS]
    assert names(page) == first
    accuracy = table.get_by_role("button", name="accuracy of one answer")
    accuracy.click()
    # The row without a figure stays last both times.
    assert names(page) == ["exact", "BPDA", "blind", first[2]]
    accuracy.click()
    assert names(page) == ["blind", "BPDA", "exact", first[2]]
    assert table.locator("th[aria-sort=descending]").inner_text() == "accuracy of one answer"
    table.get_by_role("button", name="passes").press("Enter")
    assert names(page) == ["BPDA", "blind", "exact", first[2]]  # 8, 9, 10, 100: numbers, not texts
    table.get_by_role("button", name="attack").click()
    assert names(page) == ["blind", "BPDA", "exact", first[2]]


def test_filters_leave_the_images_that_they_name(visit):
    page = visit()
    shown = page.locator("#thumbs button")
    assert (shown.count(), page.locator("#count").inner_text()) == (5, "5 of 5 images shown")
    page.get_by_label("Outcome").select_option("lost")
    assert shown.count() == 1
    assert page.locator("#case-title").inner_text() == (
        "Image 1, class bright: clean right → attacked wrong → purified wrong"
    )
    page.get_by_label("True class").select_option(label="dark")
    assert (shown.count(), page.locator("#count").inner_text()) == (0, "0 of 5 images shown")
    assert not page.locator("#case").is_visible()
    page.get_by_label("Outcome").select_option("")
    assert shown.count() == 2
    assert page.get_by_label("Outcome").locator("option").all_inner_texts()[0] == "all (2)"
    page.get_by_label("True class").select_option("")
    page.locator("#by-attack").select_option(label="none")
    page.get_by_label("Outcome").select_option("lost")
    assert shown.count() == 0


def test_the_slider_walks_the_steps(visit):
    page = visit()
    # The first image that purification saves is chosen: 0.4, then 0.5 and 0.6.
    slider = page.get_by_label("Purification step")
    # Read off a copy: Chromium remarks on canvases that are read often.
    grey = """() => {
      const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      copy.drawImage(document.getElementById("purified"), 0, 0);
      return copy.getImageData(0, 0, 1, 1).data[0];
    }"""
    fact = lambda name: page.locator(f"#{name}").inner_text()
    assert page.evaluate(grey) == 153  # it opens on the last step
    slider.press("Home")
    assert (fact("step-size"), fact("score-norm"), page.evaluate(grey)) == (
        "none yet",
        "none yet",
        102,
    )
    assert fact("answer") == "dark (1.00), wrong"
    slider.press("ArrowRight")
    assert page.evaluate(grey) == 128
    slider.press("ArrowRight")
    assert (fact("step-size"), fact("score-norm"), page.evaluate(grey)) == ("0.2", "2", 153)
    assert fact("answer") == "bright (1.00), right"
    assert fact("final-answer") == "bright (1.00), right; average of 3 purified copies"
    assert page.locator("#purified-caption").inner_text().startswith("After step 2 of 2")
    assert page.locator("#probabilities tr").last.inner_text().split() == [
        "bright",
        "(true)",
        "1.000",
    ]
    assert "After step 2 of 2" in slider.get_attribute("aria-valuetext")
    assert "× 1" in page.locator("#difference").get_attribute("aria-label")


def test_play_walks_from_the_noised_image_to_the_end(visit):
    page = visit()
    page.clock.install()
    words = page.locator("#step-words")
    page.get_by_role("button", name="Play").click()
    # Three pictures in three seconds, and it ends there.
    expected = ["Noised, before the first step", "After step 1 of 2", *["After step 2 of 2"] * 3]
    for text in expected:
        assert words.inner_text() == text
        page.clock.run_for(1000)
    assert page.locator("#played").inner_text().startswith("After step 2 of 2, classified ")
    assert page.get_by_label("Purification step").input_value() == "2"


def test_the_arrow_keys_move_between_images(visit):
    page = visit()
    page.locator("#thumbs button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#case-title").inner_text().startswith("Image 1,")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Image 1,")
    page.keyboard.press("End")
    assert page.locator("#case-title").inner_text().startswith("Image 4,")
    assert page.locator("#thumbs button[tabindex='0']").count() == 1


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_scrolls_sideways(visit, width, scheme):
    page = visit(width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((fold) => fold.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    frames = page.locator(".scroll")
    if width == 400:  # the wide table is not cut off: its frame scrolls
        assert frames.nth(1).evaluate("(frame) => frame.scrollWidth > frame.clientWidth")
    # A number and its interval share a line.
    cell = page.locator("td", has_text="[0.826, 0.945]").first
    assert cell.evaluate("(c) => c.getClientRects().length && c.offsetHeight < 60")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out_from_their_ground(visit, scheme):
    """WCAG AA: 4.5 to 1 for every pair of colours that the style gives to text and its ground."""
    page = visit(color_scheme=scheme)
    of = lambda name: page.evaluate(
        f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
    )
    pairs = [
        (text, ground)
        for text in ("ink", "muted", "accent", "good", "bad")
        for ground in ("paper", "card")
    ]
    pairs += [("ink", "good-card"), ("ink", "bad-card")]
    assert {
        p: round(_contrast(of(p[0]), of(p[1])), 1)
        for p in pairs
        if _contrast(of(p[0]), of(p[1])) < 4.5
    } == {}


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed (see above)")
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(visit, width, scheme):
    # The page itself runs no script but its own; axe must be let in.
    page = visit(width, color_scheme=scheme, bypass_csp=True)
    page.evaluate("document.querySelectorAll('details').forEach((fold) => fold.open = true)")
    page.add_script_tag(content=AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations', 'passes'] })")
    assert len(found["passes"]) > 20
    wrong = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in wrong] == []


def _contrast(first, second):
    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted([luminance(first), luminance(second)], reverse=True)
    return (light + 0.05) / (dark + 0.05)
