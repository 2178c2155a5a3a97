"""The studio in a real browser: each tab's main path, from click to image."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atomtune import generate, load_adapter, load_base
from atomtune.comparing import RESULTS
from atomtune.dialling import Settings
from atomtune.shipped import ADAPTER, IMAGES
from atomtune.showing import MARGIN, AtomMap
from atomtune.steering import board
from atomtune.tracing import trace
from atomtune.training import journal
from atomtune.workspace import enlarged
from tests.browser import set_width
from tests.studio.driving import WAIT, Page, studio, wait

PROMPT = "a sks teapot on a red background"
STEPS = 6  # of sampling, so that tests are short
TABS = ("Look", "Steer", "Learn", "Edit", "Merge", "Compare")


@pytest.fixture(scope="module")
def pipe():
    """What a notebook has: the page shows the same images."""
    pipe = load_base("moji")
    load_adapter(pipe, ADAPTER)
    return pipe


def drawn(pipe, settings: Settings | None = None, seed: int = 0) -> np.ndarray:
    atoms = board(pipe)
    if settings is None:
        with pipe.transformer.disable_adapter():
            return np.asarray(enlarged(generate(pipe, PROMPT, seed=seed, steps=STEPS)[0].image))
    atoms.apply(settings.preset(atoms))
    image = generate(pipe, PROMPT, seed=seed, steps=STEPS)[0].image
    atoms.reset()
    return np.asarray(enlarged(image))


def asks(page: Page, tab: str, seed: int = 0) -> None:
    page.tab(tab)
    page.write("Prompt", PROMPT)
    page.write("Sampling steps", STEPS)
    page.write("Seed", seed)


def test_it_opens_with_moji_and_an_adapter_and_every_control_has_a_name(page):
    assert page.browser.title == "atomtune studio"
    nameless = """return [...document.querySelectorAll('input, textarea, select, button')].filter(e => e.offsetParent &&
        !(e.getAttribute('aria-label') || e.textContent.trim() || e.title || (e.labels && [...e.labels].some(
            l => l.textContent.trim()))) && e.type !== 'file').map(e => e.outerHTML.slice(0, 200))"""
    for tab in TABS:
        page.tab(tab)
        assert page.browser.execute_script(nameless) == [], tab
    page.tab("Look")
    assert page.labelled("Adapter").get_property("value") == "teapot (example)"


def plotted(page: Page) -> dict[str, float]:
    """Timestep: height, of the bars of Look."""
    script = """return [...arguments[0].querySelectorAll('[role=graphics-symbol]')].map(bar => bar.ariaLabel)"""
    bars = [
        re.match(r"timestep: +(\d+); share of its most: ([\d.e-]+)", label or "")
        for label in page.browser.execute_script(script, page.panel)
    ]
    return {bar[1]: float(bar[2]) for bar in bars if bar}


@pytest.mark.studio
def test_look_from_click_to_image(page, pipe):
    asks(page, "Look", 1)
    page.press("Draw")
    page.until_said("Without it the image changes")
    assert np.array_equal(page.pixels("Base"), drawn(pipe, None, 1))
    assert np.array_equal(page.pixels("Image with the adapter"), drawn(pipe, Settings(), 1))
    first = page.labelled("Atom").get_property("value")
    assert re.fullmatch(r"L\d+\[\d+\]", first) and first in page.said
    assert page.picture("Heatmap of the atom over the image") or "of words alone: " in page.said
    assert first in page.cells

    page.click_at("Image with the adapter", 0.5, 0.55)
    with trace(pipe) as seen:
        generate(pipe, PROMPT, seed=1, steps=STEPS)
    said = page.until_said("Here act L.*Without it the image changes")
    assert page.labelled("Atom").get_property("value") in said
    whole = AtomMap.of([layer.dictionary for layer in seen.layers], [layer.mean_energy for layer in seen.layers])
    (width, height), (column, row) = whole.image.size, whole.cell
    empty = [
        (x, y)
        for x in range(MARGIN + column // 2, width, column)
        for y in range(row // 2, height, row)
        if whole.address(x, y) is None
    ]
    x, y = min(empty, key=lambda place: abs(place[0] - width / 2) + abs(place[1] - height / 2))
    page.click_at("Map of all atoms", x / width, y / height)
    page.until_said("no atom at this place.*Without it the image changes", 30)
    for address in page.cells[:6:3]:  # the plot is that of the atom, and not of the one before
        page.write("Atom", address)
        page.until_said(re.escape(address) + " of .*Without it the image changes")
        energies = seen[address].mean_energy_by_timestep
        most = max(energies.values())
        expected = {f"{t:.0f}": each / most for t, each in energies.items()}
        wait(lambda expected=expected: plotted(page) == pytest.approx(expected, abs=1e-3), 10)
    page.write("Atom", "L99[0]")
    page.until_said("There is no 'L99")
    assert page.picture("Influence of the atom")  # what was there stays


def test_steer_from_slider_to_image(page, pipe):
    asks(page, "Steer")
    page.press("Draw")
    page.until_said("Drawn in .*as trained")
    assert np.array_equal(page.pixels("With these settings"), drawn(pipe, Settings()))
    page.write("Density", 0.05)
    page.until_said(r"Drawn in .*density 0\.05")
    assert np.array_equal(page.pixels("With these settings"), drawn(pipe, Settings(density=0.05)))
    page.write("Strength, late steps", 0)
    page.until_said(r"Drawn in .*density 0\.05, strength 1 at 1000, 1 at 500, 0 at 0")
    late = Settings(density=0.05, schedule={1000.0: 1, 500.0: 1, 0.0: 0})
    assert np.array_equal(page.pixels("With these settings"), drawn(pipe, late))
    page.press("Add to strip")
    page.press("Undo")
    page.until_said(r"Drawn in .*density 0\.05\.$")
    page.write("Its gain", -1)
    address = page.labelled("Atom or layer").get_property("value")
    page.until_said(re.escape(f"density 0.05, {address} × -1"))
    page.press("Add to strip")
    wait(lambda: len(page.panel.find_elements("css selector", ".grid-wrap img, .thumbnail-item img")) == 2)
    page.browser.execute_script("arguments[0].click()", page.panel.find_element("css selector", ".thumbnail-item"))
    page.until_said("strength 1 at 1000, 1 at 500, 0 at 0")  # back to the first of the strip
    assert float(page.labelled("Its gain").get_property("value")) == 1
    assert np.array_equal(page.pixels("With these settings"), drawn(pipe, late))


def test_steer_writes_a_preset_and_the_same_in_words(page, pipe, server):
    asks(page, "Steer")
    page.write("Atoms kept", 40)
    page.until_said("Drawn in .*40 atoms")
    page.browser.execute_script("arguments[0].click()", page.panel.find_element("css selector", ".label-wrap"))
    page.write("Name", "forty")
    page.press("Save as preset")
    page.until_said("Saved as")
    file = server.workspace / "presets" / "forty.json"
    atoms = board(pipe)
    atoms.apply(file)
    image = generate(pipe, PROMPT, steps=STEPS)[0].image
    atoms.reset()
    assert np.array_equal(page.pixels("With these settings"), np.asarray(enlarged(image)))
    command, python = (code.text for code in page.panel.find_elements("css selector", ".cm-content"))
    words = shlex.split(command)
    assert words[words.index("--preset") + 1] == str(file) and words[words.index("--prompt") + 1] == PROMPT
    assert "board.keep(40)" in python


@pytest.mark.studio
def test_learn_from_images_to_a_run(page, server):
    page.tab("Learn")
    page.press("Take the example: five images of a teapot")
    page.until_said("Five images")
    wait(lambda: page.picture("Image 5"))
    page.write("Caption 1", "a sks teapot on grass")
    page.write("Name of the run", "pot")
    page.write("Training steps", 60)
    page.press("Learn")
    page.until_said("Queued: .*customize")
    assert (server.workspace / "images" / "pot" / "00.txt").read_text() == "a sks teapot on grass"
    page.until_said("finished, 60 steps", 5 * WAIT)
    progress = journal.read(server.workspace / "pot")
    assert progress is not None and [step for step, _ in progress.losses][-1] == 60
    wait(lambda: page.panel.find_elements("css selector", ".thumbnail-item img"))  # its samples
    again = Page(page.browser, server.url)  # after a reload
    again.tab("Learn")
    again.until_said("finished, 60 steps")


@pytest.mark.studio
def test_a_run_outlives_the_studio_and_is_stopped_and_resumed(browser, tmp_path):
    """And one that was begun on a command line is there, too."""
    workspace = tmp_path / "runs"
    with studio(workspace) as server:
        page = Page(browser, server.url)
        page.tab("Learn")
        page.drop(*sorted((IMAGES / "teapot").glob("*.png")))
        wait(lambda: page.picture("Image 5"))
        page.write("What is it?", "teapot")
        wait(lambda: page.labelled("Caption 1").get_property("value") == "a sks teapot")
        page.write("Name of the run", "long")
        page.write("Training steps", 4000)
        page.press("Learn")
        page.until_said("training: step [1-9]", 5 * WAIT)
    before = journal.read(workspace / "long")
    assert before is not None and before.state == "training"  # with the studio closed
    words = ["customize", IMAGES / "teapot", "--class-name", "teapot", "--out", workspace / "typed", "--steps", 2]
    subprocess.run([sys.executable, "-m", "atomtune", *map(str, words)], check=True, capture_output=True)
    with studio(workspace) as server:
        page = Page(browser, server.url)
        page.tab("Learn")
        wait(lambda: "typed" in page.cells)
        page.choose("Run", "long")
        page.until_said("training: step [1-9]")
        page.press("Stop")
        page.until_said("long stops after its step, with a checkpoint")
        page.until_said("stopped")
        stopped = journal.read(workspace / "long")
        assert stopped is not None and before.losses == stopped.losses[: len(before.losses)]
        page.press("Resume")
        page.until_said("training: step [1-9]")
        wait(lambda: (now := journal.read(workspace / "long")) and len(now.losses) > len(stopped.losses))
        page.press("Stop")
        page.until_said("stopped")


@pytest.mark.studio
def test_what_is_no_image_is_refused_in_a_sentence(page, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    page.tab("Learn")
    page.drop(tmp_path / "notes.png")
    page.until_said("notes.png .*image")


@pytest.mark.studio
def test_merge_from_two_adapters_to_an_image(page, server):
    page.tab("Merge")
    example = "teapot (example)"
    for _ in range(2):
        page.choose("Adapters, two to four", example if _ else "pot")
    page.write("Prompt", PROMPT)
    page.write("Sampling steps", STEPS)
    page.write("Weight of pot", 0)
    page.press("Preview")
    page.until_said("pot × 0, .*nothing is written yet")
    wait(lambda: page.picture("Merged"))


def test_mistakes_are_sentences_in_the_page(page):
    page.tab("Learn")
    page.press("Learn")
    page.until_said("There are no images: drop some, or take the example")
    page.tab("Steer")
    page.write("Prompt", " ")
    page.press("Draw")
    page.until_said("The prompt is empty: say what to draw")
    page.tab("Merge")
    page.press("Preview")
    page.until_said("Choose two adapters or more")
    page.tab("Compare")
    page.press("Compare")
    page.until_said("Choose one adapter or more")
    page.tab("Edit")
    page.press("Edit")
    page.until_said("There is no image: drop one, or take the example")
    page.press("Take the example")
    wait(lambda: page.panel.find_elements("css selector", "img"), 60)
    page.press("Show")
    page.until_said("Choose one of the list first")
    page.tab("Steer")
    page.write("Prompt", PROMPT)
    page.write("Seed", -3)
    page.press("Draw")
    page.until_said(r"Seed must be a whole number .*got -3")


def test_a_list_closes_when_the_keyboard_leaves_it(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    def lists() -> list:
        return page.panel.find_elements("css selector", "ul[role=listbox]")

    page.tab("Merge")
    page.focus("Adapters, two to four")
    wait(lists, 10)
    ActionChains(page.browser).send_keys(Keys.TAB).perform()
    wait(lambda: not lists(), 10)


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_window(page, width):
    set_width(page.browser, width)
    for tab in TABS:
        page.tab(tab)
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width, tab
    set_width(page.browser, 1280)


def test_two_users_do_not_see_each_other(page, server, pipe):
    """Two windows of one browser are two sessions."""
    browser, first = page.browser, page.browser.current_window_handle
    asks(page, "Steer")
    page.write("Density", 0.05)
    browser.switch_to.new_window("tab")
    try:
        other = Page(browser, server.url)
        asks(other, "Steer", 5)
        assert other.labelled("Density").get_property("value") != "0.05"
        other.press("Draw")
        browser.switch_to.window(first)
        page.press("Draw")
        page.until_said(r"Drawn in .*density 0\.05")
        assert np.array_equal(page.pixels("With these settings"), drawn(pipe, Settings(density=0.05)))
        browser.switch_to.window(browser.window_handles[-1])
        other.until_said("Drawn in .*as trained")
        assert np.array_equal(other.pixels("With these settings"), drawn(pipe, Settings(), 5))
    finally:
        browser.close()
        browser.switch_to.window(first)


@pytest.mark.studio
def test_edit_from_an_image_to_a_ladder(page, server):
    page.tab("Edit")
    page.press("Take the example")
    wait(lambda: "red" in page.labelled("What it should become").get_property("value"))
    page.write("Name of the run", "edited")
    page.write("Training steps", 100)
    page.press("Edit")
    page.until_said("Queued, see Learn: .*edit")
    wait(lambda: (server.workspace / "edited" / "edit.json").is_file(), 10 * WAIT)
    page.choose("Finished edits", "edited")
    page.until_said("a teapot on a red background: ")
    page.browser.execute_script("arguments[0].click()", page.panel.find_elements("css selector", ".thumbnail-item")[1])
    label = page.until_said("Chosen: ").removeprefix("Chosen: ").rstrip(".")
    page.press("Save the chosen one as preset")
    page.until_said("Saved as")
    rungs = json.loads((server.workspace / "edited" / "edit.json").read_text())["rungs"]
    preset = json.loads((server.workspace / "presets" / "my-edit.json").read_text())
    assert preset == next(rung["preset"] for rung in rungs if rung["label"] == label)


@pytest.mark.studio
def test_compare_from_adapters_to_numbers(page, server):
    page.tab("Compare")
    page.choose("Adapters, of any method", "teapot (example)")
    page.write("Prompts, one a line", PROMPT)
    page.write("Images of each prompt", 1)
    page.write("Name of the comparison", "compared")
    page.press("Compare")
    page.until_said("Queued, see Learn: .*compare")
    wait(lambda: all((server.workspace / "compared" / name).is_file() for name in RESULTS), 10 * WAIT)
    page.choose("Finished comparisons", "compared")
    wait(lambda: page.picture("Grid of images, a row for each adapter"))
    scores = json.loads((server.workspace / "compared" / "scores.json").read_text())["scores"]
    assert f"{scores['teapot']['pixels']:.3f}" in page.cells


@pytest.mark.studio
def test_pictures_of_every_tab(server, browser, screenshots):
    """Written for people to look at, and for the pages of the documentation. After the tests above, so there is
    something to see."""
    take_pictures(Page(browser, server.url), screenshots, "teapot (example)", "pot", "edited", "compared")


def take_pictures(page: Page, folder: Path, adapter: str, run: str, edited: str, compared: str) -> None:
    """Of every tab, in both widths, light and dark."""

    def take() -> None:
        for theme in ("light", "dark"):
            page.browser.execute_script(f"document.body.classList.toggle('dark', {str(theme == 'dark').lower()})")
            for width in (1280, 800):
                file = page.screenshot(folder / f"{page.name.lower()}-{width}-{theme}.png", width)
                assert file.stat().st_size > 10_000
        page.browser.execute_script("document.body.classList.remove('dark')")
        set_width(page.browser, 1280)

    for tab in ("Look", "Steer"):
        page.tab(tab)
        page.choose("Adapter", adapter)
        page.press("Draw")
        page.until_said("Without it the image|Drawn in")
        if tab == "Steer":
            for density in (0.01, 0.1):
                page.press("Add to strip")
                page.write("Density", density)
                page.until_said(f"Drawn in .*density {density}")
            page.press("Add to strip")
        take()
    page.tab("Learn")
    page.press("Take the example: five images of a teapot")
    wait(lambda: page.picture("Image 5"))
    page.choose("Run", run)
    page.until_said("finished, ")
    take()
    page.tab("Edit")
    page.press("Take the example")
    page.choose("Finished edits", edited)
    page.until_said("a teapot on a red background: ")
    take()
    page.tab("Merge")
    for name in (run, "teapot (example)"):
        page.choose("Adapters, two to four", name)
    page.write(f"Weight of {run}", 0.5)
    page.press("Preview")
    page.until_said("nothing is written yet")
    take()
    page.tab("Compare")
    page.choose("Finished comparisons", compared)
    wait(lambda: page.picture("Grid of images, a row for each adapter"))
    take()
