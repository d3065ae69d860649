"""The page in a real browser; needs playwright and chromium: pip install playwright, apt-get install chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ds_sft.tools.run_report.examples import Examples
from ds_sft.tools.run_report.page import page_of
from ds_sft.tools.run_report.record import read_run
from ds_sft.tools.run_report.surroundings import read_surroundings
from tests.tools.run_report.folders import row, write_events, write_state
from tests.tools.run_report.test_page import PAYLOADS, everywhere, sample_of

CHROMIUM = shutil.which("chromium")
playwright: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")]

NARROW, WIDE = 390, 1920
TEXTS = ["x" * 40_000, "用一句话说明。 한국어 🏳️‍🌈 e\u0301", "שלום עולם", "", *PAYLOADS]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A chromium without a window."""
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with everything in it and samples of every kind."""
    folder = tmp_path_factory.mktemp("browser")
    history = [row(step, None if step == 7 else 5.0 - step / 20, tokens_per_second=9.0) for step in range(1, 61)]
    write_state(folder, [*history, {"step": 30, "eval_loss": 3.5}])
    events = [("start", {"step": 0, "model": "m" * 300}), ("resume", {"step": 9, "model": "m" * 300})]
    write_events(folder, *events, ("warning", {"message": "w" * 500}))
    (folder / "ds_sft.resolved.yaml").write_text(f"a: {'v' * 400}\n")
    run = read_run(folder)
    samples = [sample_of(text, identity=str(number)) for number, text in enumerate(TEXTS)]
    page = folder / "report.html"
    page.write_text(page_of(run, read_surroundings(run), Examples(samples, "")), encoding="utf-8")
    return page


class Opened:
    """A page that is open, and what it asked for and said."""

    def __init__(self, browser: Any, file: Path, *, width: int = 1280, anchor: str = "", **more: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **more)
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda _: self.said.append("dialog"))
        self.page.goto(f"file://{file}{anchor}")

    def tell(self, program: str) -> Any:
        return self.page.evaluate(program)


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_nothing_is_asked_for_nothing_is_said_and_nothing_scrolls_sideways(
    width: int, browser: Any, file: Path
) -> None:
    opened = Opened(browser, file, width=width)
    assert opened.requests == [f"file://{file}"]
    assert opened.said == []
    root = "document.documentElement"
    assert opened.tell(f"{root}.scrollWidth <= {root}.clientWidth") is True


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_runs(payload: str, browser: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(everywhere(tmp_path / "run", payload), encoding="utf-8")
    opened = Opened(browser, tmp_path / "report.html")
    assert (opened.said, len(opened.requests), opened.page.title()) == ([], 1, "Run report")
    assert opened.tell("document.querySelectorAll('img, iframe, object, [onerror], [onload]').length") == 0


def test_plots_are_drawn_with_javascript_off_and_in_print(browser: Any, file: Path) -> None:
    opened = Opened(browser, file, java_script_enabled=False)
    plots = opened.page.locator("figure > svg")
    assert plots.count() == 4
    opened.page.emulate_media(media="print")
    for number in range(4):
        box = plots.nth(number).bounding_box()
        assert box["width"] > 300
        assert box["height"] > 100
    assert opened.page.locator("article").count() == len(TEXTS)
    assert not opened.page.locator("#form").is_visible()


def test_keys_turn_the_samples_and_the_search_hides_others(browser: Any, file: Path) -> None:
    opened = Opened(browser, file, anchor="#s2")
    opened.page.keyboard.press("n")
    assert opened.tell("[document.activeElement.id, location.hash]") == ["s3", "#s3"]
    opened.page.keyboard.press("ArrowLeft")
    opened.page.keyboard.press("p")
    opened.page.keyboard.press("p")
    assert opened.tell("document.activeElement.id") == "s1"
    opened.page.fill("#search", "עולם")
    assert opened.page.locator("article:visible").count() == 1
    assert opened.page.locator("#found").inner_text() == f"1 of {len(TEXTS)}"
    opened.page.keyboard.press("Tab")
    assert opened.tell("document.activeElement.id") == "previous"
    assert opened.tell("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme: str, browser: Any, file: Path) -> None:
    axe: Any = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
    opened = Opened(browser, file, color_scheme=scheme)
    found = axe.Axe().run(opened.page).response["violations"]
    assert [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found] == []
