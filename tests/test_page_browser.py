"""The page of tools.page in a real browser: `make test-page`.

It needs chromium and its driver, and selenium, which drives it:

    sudo apt-get install chromium chromium-driver      (Debian)
    .venv/bin/pip install selenium==4.51.0
"""

import json
import shutil
import time

import pytest

import common
from tools import page

selenium = pytest.importorskip("selenium.webdriver", reason="pip install selenium==4.51.0")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="apt-get install chromium chromium-driver"),
]

KINDS = ("spatial", "temporal")
HOSTILE = "<img src=x onerror=\"document.title='broken'\"></script><script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def browser():
    options = selenium.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options, selenium.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def make_rows(n):
    """Make n rows: every third is a pair, every third has no error, the rest is not finished."""
    rows = []
    for number in range(n):
        row = {"id": f"v{number // 6}.mp4/{KINDS[number % 2]}/{number}", "video": f"v{number // 6}.mp4"}
        row |= {"kind": KINDS[number % 2], "question": f"question {number}?", "initial": "it moves left."}
        row |= {"critique": "no, it moves to the right there.", "error_types": ["motion"] if number % 3 else []}
        if number % 3 == 0:
            row["dropped"] = "no_error_found"
        elif number % 3 == 1:
            row |= {"revised": "it moves right.", "chosen": "it moves right.", "rejected": "it moves left."}
        rows.append(row)
    return rows


def write_page(directory, rows, *options):
    round1 = directory / "round1"
    round1.mkdir(parents=True)
    common.write_jsonl(round1 / "pairs.jsonl", rows)
    (round1 / "model").mkdir()
    steps = [{"step": number, "loss": 1 / number} for number in range(1, 101)]
    common.write_jsonl(round1 / "model" / "metrics.jsonl", steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["page.py", str(directory), "--rows", "0", *options])
        page.main()
    return directory / "page.html"


def load(browser, path, fragment=""):
    """Open a page, and wait until it is whole."""
    browser.get("about:blank")
    browser.get(f"{path.as_uri()}{fragment}")
    deadline = time.monotonic() + 30
    while browser.execute_script("return document.documentElement.dataset.ready") != "yes":
        assert time.monotonic() < deadline, browser.get_log("browser")
        time.sleep(0.05)
    assert browser.get_log("browser") == []  # no error, no warning


def count_shown(browser):
    return browser.execute_script("return document.querySelectorAll('#pairs article').length")


def status(browser, section):
    return browser.execute_script(f"return document.querySelector('#{section} [role=status]').textContent")


def choose(browser, label, value):
    """Choose in a filter of the pairs, as a user does."""
    browser.execute_script(
        """const labels = [...document.querySelectorAll("#pairs label")];
        const label = labels.find(one => one.firstChild.data === arguments[0]);
        const field = label.querySelector("select, input");
        field.value = arguments[1];
        field.dispatchEvent(new Event(field.matches("select") ? "change" : "input"));""",
        label,
        value,
    )
    time.sleep(0.3)  # the text field waits for the next key


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    rows = make_rows(60)
    rows[7]["question"] = HOSTILE
    return write_page(tmp_path_factory.mktemp("small"), rows, "--judge", "3"), rows


def test_filters_and_more(browser, small):
    path, _ = small
    load(browser, path)
    assert status(browser, "pairs") == "60 of 60; 20 are shown"
    browser.find_element("css selector", "#pairs > button").click()
    assert count_shown(browser) == 40
    choose(browser, "what became of it", "pair")
    assert status(browser, "pairs") == "20 of 60; 20 are shown"
    choose(browser, "kind", "temporal")
    assert status(browser, "pairs") == "10 of 60; 10 are shown"
    choose(browser, "text", "question 13?")
    assert status(browser, "pairs") == "1 of 60; 1 are shown"


def test_text_is_shown_and_not_run(browser, small):
    path, _ = small
    load(browser, path)
    choose(browser, "text", "onerror")
    shown = browser.execute_script("return document.querySelector('#pairs article').textContent")
    assert HOSTILE in shown
    assert "broken" not in browser.title


def test_a_link_leads_to_one_row(browser, small):
    path, rows = small
    load(browser, path)
    link = browser.execute_script("return document.querySelectorAll('#pairs article a')[4].getAttribute('href')")
    load(browser, path, link)
    assert status(browser, "pairs") == "1 of 60; 1 are shown"
    assert rows[4]["id"] in browser.execute_script("return document.querySelector('#pairs article').textContent")


def test_the_difference_is_marked(browser, small):
    path, _ = small
    load(browser, path)
    choose(browser, "what became of it", "pair")
    marked = "return [...document.querySelector('#pairs article').querySelectorAll('del, ins')].map(e => e.textContent)"
    assert browser.execute_script(marked) == ["left.", "right."]


def test_a_phone_needs_no_scrolling_to_the_side(browser, small):
    path, _ = small
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    load(browser, path)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_a_contrast_of_aa(browser, small, scheme):
    """WCAG's contrast: (lighter luminance + 0.05) / (darker + 0.05), at least 4.5."""
    path, _ = small
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    load(browser, path)
    colours = browser.execute_script(
        """const ground = element => {
          const colour = getComputedStyle(element).backgroundColor;
          return colour === "rgba(0, 0, 0, 0)" && element.parentElement ? ground(element.parentElement) : colour;
        };
        return [...document.querySelectorAll("main *")].filter(element =>
          [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && element.checkVisibility())
          .map(element => [element.tagName, element.matches("svg text") ? getComputedStyle(element).fill
            : getComputedStyle(element).color, ground(element)])"""
    )
    for tag, text, ground in {tuple(colour) for colour in colours}:
        brighter, darker = sorted((luminance(text), luminance(ground)), reverse=True)
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5, (tag, text, ground)


def luminance(colour):
    """Compute the relative luminance of rgb(...), as WCAG defines it."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_field_has_a_name(browser, small):
    path, _ = small
    load(browser, path)
    unnamed = """const fields = [...document.querySelectorAll("select, input, button, a, [role=region], [role=img]")];
      const nameOf = field => field.ariaLabel || (field.closest("label") ?? field).textContent.trim();
      return fields.filter(field => !nameOf(field)).length"""
    assert browser.execute_script(unnamed) == 0


def test_judging_by_keys(browser, small):
    """Three pairs: the first answer, the second, cannot tell. What was judged is still there after a reload."""
    path, rows = small
    load(browser, path)
    browser.execute_script("localStorage.clear()")
    load(browser, path)
    body = browser.find_element("css selector", "body")
    body.send_keys("1")  # out of sight: nobody has seen what is judged
    assert status(browser, "judge") == "0 of 3 are judged"
    see = "document.querySelector('#judge').scrollIntoView()"
    browser.execute_script(see)
    for key in "12":
        body.send_keys(key)
    load(browser, path)
    assert status(browser, "judge") == "2 of 3 are judged"
    browser.execute_script(see)
    browser.find_element("css selector", "body").send_keys("3")
    assert status(browser, "judge") == "3 of 3 are judged"
    stored = browser.execute_script("return Object.values(localStorage)")
    judged = list(json.loads(stored[0]).values())
    assert {row["id"] for row in judged} <= {row["id"] for row in rows if "chosen" in row}
    assert judged[2]["better"] is None
    assert {row["better"] for row in judged[:2]} <= {"chosen", "rejected"}


def test_24_000_rows_are_quick(browser, tmp_path):
    path = write_page(tmp_path, make_rows(24_000))
    assert path.stat().st_size < 20 * 2**20
    load(browser, path)
    painted = "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert browser.execute_script(painted) < 2000  # milliseconds
    assert status(browser, "pairs") == "24000 of 24000; 20 are shown"
