"""The report in a real browser: no errors, its dials turn, its table sorts and filters, and it fits both widths."""

import pytest

from atomtune.analysis.report import write_report
from tests.analysis.invented import invented
from tests.browser import browser_paths, chromium, set_width

pytestmark = pytest.mark.skipif(browser_paths() is None, reason="no browser: chromium and chromedriver are missing")
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    page = tmp_path_factory.mktemp("report") / "report.html"
    write_report(invented(), page)
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.get(page.as_uri())
        yield browser


def column(browser, number: int) -> list[str]:
    """What the cells of a column of the table say."""
    cells = browser.find_elements("css selector", f".sortable tbody td:nth-child({number})")
    return [cell.get_property("textContent") for cell in cells]


def press(browser, selector: str) -> None:
    browser.execute_script("arguments[0].click()", browser.find_element("css selector", selector))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(browser, width):
    set_width(browser, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = browser.execute_script(
        "return [...document.querySelectorAll('main *')].filter(e => e.offsetParent && "
        f"e.getBoundingClientRect().right > {width} + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert outside == []


@pytest.mark.parametrize("width", WIDTHS)
def test_text_is_large_enough_to_read(browser, width):
    set_width(browser, width)
    smallest = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('body *')].filter(e => e.offsetParent && "
        "[...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 11


def test_every_picture_is_shown(browser):
    broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).length"
    assert browser.execute_script("return document.images.length") > 300
    assert browser.execute_script(broken) == 0


def test_the_density_slider_swaps_the_pictures(browser):
    from selenium.webdriver.common.keys import Keys

    def seen() -> tuple[list[str], str]:
        shown = [step for step in browser.find_elements("css selector", ".density") if step.is_displayed()]
        said = browser.find_element("id", "density-says").text
        return [image.get_attribute("alt") for step in shown for image in step.find_elements("tag name", "img")], said

    pictures, said = seen()
    assert len(pictures) == 4 and "as trained" in said and "4 atoms" in said
    dial = browser.find_element("id", "density-dial")
    dial.send_keys(Keys.ARROW_LEFT)  # by keyboard
    fewer, said = seen()
    assert len(fewer) == 4 and fewer != pictures and "2 atoms" in said
    dial.send_keys(Keys.END)
    assert "8 atoms" in seen()[1]


def test_one_choice_turns_the_heatmaps_of_all_cards(browser):
    def shown() -> set[str]:
        script = "return [...document.querySelectorAll('img.heat')].filter(i => i.offsetParent).map(i => i.className)"
        return {classes.split()[-1] for classes in browser.execute_script(script)}

    assert shown() == {"all"}
    press(browser, "input[value=late]")
    assert shown() == {"late"}


def test_the_table_sorts(browser):
    set_width(browser, 1280)
    assert column(browser, 1)[:3] == ["1", "2", "3"]
    press(browser, "th[data-column='1'] button")
    assert column(browser, 2)[:3] == ["L0[0]", "L0[1]", "L0[2]"]  # as numbers: L0[10] comes after L0[9]
    press(browser, "th[data-column='1'] button")
    assert column(browser, 2)[0] == "L2[39]"
    press(browser, "th[data-column='5'] button")
    acts = [float(text.split()[0]) for text in column(browser, 6)]
    assert acts == sorted(acts, reverse=True)
    assert browser.find_element("css selector", "th[aria-sort]").get_attribute("aria-sort") == "descending"
    press(browser, "th[data-column='0'] button")
    assert column(browser, 1)[0] == "1"


def test_the_table_filters_and_grows(browser):
    find = browser.find_element("id", "find")
    count = browser.find_element("id", "count")
    assert count.text == "120 of 120 atoms" and len(column(browser, 1)) == 50
    press(browser, "#more")
    assert len(column(browser, 1)) == 100
    find.send_keys("L1 late")
    assert set(column(browser, 3)) == {"late steps, large"}
    assert all(address.startswith("L1[") for address in column(browser, 2))
    find.clear()
    find.send_keys("nothing of the kind")
    assert count.text == "0 of 120 atoms"
    find.clear()
    press(browser, "#named")
    assert count.text == "80 of 120 atoms" and "–" not in column(browser, 3)
    press(browser, "#named")
    press(browser, "#once")
    assert count.text == "119 of 120 atoms" and "L0[6]" not in column(browser, 2)
    press(browser, "#once")
    assert count.text == "120 of 120 atoms"


def test_pressing_the_map_finds_the_atom(browser):
    set_width(browser, 1280)
    browser.execute_script(
        "const row = document.querySelector('.maprow img[data-layer=\"2\"]'), box = row.getBoundingClientRect();"
        "const at = {clientX: box.left + box.width * 7.5 / 40, clientY: box.top + 5, bubbles: true};"
        "row.dispatchEvent(new PointerEvent('pointermove', at)); row.dispatchEvent(new MouseEvent('click', at));"
    )
    assert browser.find_element("id", "map-says").get_property("textContent").startswith("L2[7]: ")
    assert column(browser, 2) == ["L2[7]"]


def test_the_console_is_empty(browser):
    """Last, after everything above was pressed."""
    assert browser.get_log("browser") == []
