"""The report in headless Chromium: filters, search, diff, keyboard, dark and narrow pages, print, contrast."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval_files import sample

from harness_ext.report import write_report
from harness_ext.results.load import load_runs

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra `pages`)")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH, nor in the variable CHROMIUM"),
]
SIZES = [(375, 700), (1400, 900)]
ACTING = "<script>document.title='acted'</script>\x1b[31m\u202eevil"

# WCAG 2 contrast of every element with text of its own against the nearest background; the lowest ratio and its place.
CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const channels = (text) => numbers(text).map((v, i) => text.startsWith("color(srgb") && i < 3 ? 255 * v : v);
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = (c) => [.2126, .7152, .0722].reduce((sum, weight, i) => sum + weight * linear(c[i] / 255), 0);
  const background = (element) => {
    const color = channels(getComputedStyle(element).backgroundColor);
    return color.length > 3 && color[3] === 0 ? background(element.parentElement) : color;
  };
  let worst = [99, ""];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest("script, .hidden, .skip, svg")) continue;
    const sides = [light(channels(getComputedStyle(element).color)), light(background(element))];
    const ratio = (Math.max(...sides) + .05) / (Math.min(...sides) + .05);
    if (ratio < worst[0]) worst = [ratio, `${element.tagName}.${element.className} ${element.textContent}`];
  }
  return worst;
}"""
NAMES = "[...document.querySelectorAll('select, input, button')].map((e) => e.labels?.length || e.textContent)"


def answers(shift: int, words: str, n: int = 300) -> list[dict]:
    samples = []
    for number in range(n):
        gold, right = number % 2, (number + shift) % 3 > 0
        predicted = gold if right else 1 - gold
        doc = {"q": f"question {number}", "choices": ["no", "yes"], "context": f"A passage with number {number // 3}."}
        scores: dict[str, Any] = {
            "acc": float(right),
            "parsed_rate": float(number % 7 > 0),
            "macro_f1": [gold, predicted],
        }
        text = {2: f"the {words} answer{ACTING}", 4: f"שלום {words} עולם"}.get(
            number, f"the {words} answer to question {number}"
        )
        one = sample(
            number, doc, scores, prompt=f"Say yes or no.\n{doc['context']}\nQ: question {number}\nA:", target=gold
        )
        finish = "length" if number % 11 == 0 else "stop"
        samples.append({**one, "resps": [[text]], "filtered_resps": [text], "finish_reason": finish})
    return samples


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def report(write_pair: Callable[..., Path], tmp_path: Path) -> Path:
    both = {"configs": {"demo": {"output_type": "generate_until"}}, "metrics": {"demo": {"macro_f1,none": 0.5}}}
    folder = write_pair("demo", answers(0, "old"), answers(1, "new"), both=both)
    write_report(load_runs(folder), tmp_path / "report.html", results=["results/demo"])
    return tmp_path / "report.html"


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Opens the report; after the test there must have been no error and no request but for the file."""
    problems: list[str] = []
    contexts = []

    def open_page(width: int = 1400, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if request.url != report.as_uri() else None)
        page.goto(report.as_uri())
        page.wait_for_selector("#list .item")
        return page

    yield open_page
    assert problems == []
    for context in contexts:
        context.close()


def count(page: Any) -> str:
    return str(page.locator("#count").inner_text())


def wait_for_count(page: Any, text: str) -> None:
    page.wait_for_function("text => document.getElementById('count').textContent === text", arg=text)


def test_filters_search_and_diff(opened: Callable[..., Any]) -> None:
    page = opened()
    assert count(page) == "300 of 300 samples"
    for kind, size in (("fixed", 100), ("broken", 100), ("wrong", 0), ("unparsed", 43), ("cut", 28)):
        page.click(f"#filters [data-kind={kind}]")
        assert count(page) == f"{size} of 300 samples"
        assert page.get_attribute(f"#filters [data-kind={kind}]", "aria-pressed") == "true"
    page.click("#filters [data-kind=all]")
    page.select_option("#pick-class", label="yes")
    assert count(page) == "150 of 300 samples"
    page.select_option("#pick-class", label="all")
    page.fill("#query", "question 29\n")
    page.fill("#query", "Question 299")
    wait_for_count(page, "1 of 300 samples")
    assert page.locator("#detail del").all_inner_texts() == ["old"]
    assert page.locator("#detail ins").all_inner_texts() == ["new"]
    assert "Q: question 299" in page.locator("#detail").inner_text()
    page.click("text=Show the 3 samples of this passage")
    page.fill("#query", "")
    wait_for_count(page, "3 of 300 samples")
    page.click("text=Show all passages")
    assert count(page) == "300 of 300 samples"


def test_keyboard_and_only_what_is_seen_is_drawn(opened: Callable[..., Any]) -> None:
    page = opened()
    assert page.locator("#list .item").count() < 30
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    assert page.locator("#detail h3").inner_text().startswith("Document 1 ")
    page.keyboard.press("End")
    assert page.locator("#detail h3").inner_text().startswith("Document 299 ")
    active = page.get_attribute("#list", "aria-activedescendant")
    assert page.get_attribute(f"#{active}", "aria-selected") == "true"
    assert page.locator("#list .item").count() < 30
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "detail"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_twenty_thousand_samples_stay_usable(browser: Any, write_pair: Callable[..., Path], tmp_path: Path) -> None:
    both = {"metrics": {"demo": {"macro_f1,none": 0.5}}}
    folder = write_pair("demo", answers(0, "old", 20_000), answers(1, "new", 20_000), both=both)
    write_report(load_runs(folder), tmp_path / "report.html")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("#list .item")
    page.focus("#list")
    page.keyboard.press("End")
    assert page.locator("#detail h3").inner_text().startswith("Document 19999 ")
    assert page.locator("#list .item").count() < 30
    page.fill("#query", "question 12345")
    wait_for_count(page, "1 of 20,000 samples")
    page.close()


def test_texts_do_not_act(opened: Callable[..., Any]) -> None:
    page = opened()
    page.fill("#query", "evil")
    wait_for_count(page, "1 of 300 samples")
    assert page.title() == "sst2 against tiny on demo"
    assert page.locator("#detail script").count() == 0
    assert set(page.locator("#detail .control").all_inner_texts()) == {"\\x1b", "\\u202e"}
    assert "<script>document.title='acted'</script>" in page.locator("#detail").inner_text()


def test_texts_from_right_to_left_have_their_own_direction(opened: Callable[..., Any]) -> None:
    page = opened()
    page.fill("#query", "שלום")
    wait_for_count(page, "1 of 300 samples")
    direction = "(e) => getComputedStyle(e).direction"
    assert set(page.locator("#detail .pair pre").evaluate_all(f"(all) => all.map({direction})")) == {"rtl"}
    assert page.locator("#detail").evaluate(direction) == "ltr"


@pytest.mark.parametrize("size", SIZES, ids=["narrow", "wide"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(opened: Callable[..., Any], size: tuple[int, int], scheme: str) -> None:
    page = opened(*size, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    assert all(page.evaluate(NAMES))


def test_prints_without_the_browser(opened: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(color_scheme="dark")
    page.pdf(path=str(tmp_path / "report.pdf"), format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    page.emulate_media(media="print")
    assert not page.is_visible("#browser")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_without_scripts_all_but_the_samples_is_there(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.is_visible("#no-script")
    assert not page.is_visible("#browser")
    assert page.is_visible("#differences .forest")
    context.close()
