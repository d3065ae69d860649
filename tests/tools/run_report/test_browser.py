"""The page in a real browser: chromium of the system, driven by playwright, judged by axe-core.

Both Python packages are in the extra `dev` and bring their own driver and axe; only the browser is the system's:
apt-get install chromium.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.tools.run_report.examples import Examples
from ds_sft.tools.run_report.page import page_of
from ds_sft.tools.run_report.predictions import read_predictions
from ds_sft.tools.run_report.record import read_run
from ds_sft.tools.run_report.report import Wanted, report
from ds_sft.tools.run_report.surroundings import read_surroundings
from tests.tools.run_report.folders import (
    row,
    rows,
    samples_of_run,
    write_events,
    write_many_conversations,
    write_predictions,
    write_run,
    write_state,
)
from tests.tools.run_report.test_page import MEASURED, PAYLOADS, everywhere, sample_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
playwright: Any = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e .[dev]")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no browser: apt-get install chromium")

NARROW, WIDE = 390, 1920
NUM_PLOTS, NUM_ROWS, LOST = 8, 60, 7
NUM_SAMPLES = 200
TEXTS = ["x" * 40_000, "用一句话说明。 한국어 🏳️‍🌈 e\u0301", "שלום עולם", "", *PAYLOADS]
NUM_POINTS = """(style) => [...document.querySelector("figure > svg").querySelectorAll(`.${style}`)]
    .map((path) => (path.getAttribute("d").match(/[ML]/g) ?? []).length).reduce((sum, num) => sum + num, 0)"""
UNDERLINED = """[...document.querySelectorAll("article")].map((article) => [...article.querySelectorAll("pre span")]
    .filter((span) => getComputedStyle(span).textDecorationLine === "underline")
    .reduce((sum, span) => sum + Number(span.dataset.tokens), 0))"""


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
    history = [row(step, None if step == LOST else 5.0 - step / 20, **MEASURED) for step in range(1, NUM_ROWS + 1)]
    write_state(folder, [*history, {"step": 30, "eval_loss": 3.5}])
    start = {"step": 0, "model": "m" * 300, "planned_memory": 2**31, "peak_flops": 1e12}
    write_events(folder, ("start", start), ("resume", {**start, "step": 9}), ("warning", {"message": "w" * 500}))
    write_predictions(folder, *({"step": 1, "question": text, "expected": text, "prediction": text} for text in TEXTS))
    (folder / "ds_sft.resolved.yaml").write_text(f"a: {'v' * 400}\n")
    run = read_run(folder)
    samples = [sample_of(text, identity=str(number)) for number, text in enumerate(TEXTS)]
    page = folder / "report.html"
    text = page_of(run, read_surroundings(run), Examples(samples, ""), read_predictions(folder))
    page.write_text(text, encoding="utf-8")
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
        self.page.on("dialog", self._dismiss)
        self.page.goto(f"file://{file}{anchor}")

    def _dismiss(self, dialog: Any) -> None:
        self.said.append("dialog")
        dialog.dismiss()

    def tell(self, program: str, *given: Any) -> Any:
        return self.page.evaluate(program, *given)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def focused(self) -> str:
        return str(self.tell("document.activeElement.id || document.activeElement.tagName"))

    def tab_to(self, wanted: str, *, most: int = 80) -> None:
        """Press the tabulator until the focus is there."""
        for _ in range(most):
            self.press("Tab")
            if self.focused() == wanted:
                return
        pytest.fail(f"{wanted} cannot be reached with the keyboard")


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_nothing_is_asked_for_nothing_is_said_and_nothing_scrolls_sideways(
    width: int, browser: Any, file: Path
) -> None:
    opened = Opened(browser, file, width=width)
    opened.tell("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert opened.requests == [f"file://{file}"]
    assert opened.said == []
    root = "document.documentElement"
    assert opened.tell(f"{root}.scrollWidth <= {root}.clientWidth") is True


def test_a_page_that_does_ask_and_speak_is_noticed(browser: Any, tmp_path: Path) -> None:
    """Holds the other tests to account: their silence would be worth nothing if nothing was heard."""
    text = "<!doctype html><img src=a.png onerror=alert(1)><script>console.log('x')</script><p style='width:4000px'>x"
    (tmp_path / "loud.html").write_text(text)
    opened = Opened(browser, tmp_path / "loud.html", width=NARROW)
    opened.page.wait_for_timeout(200)
    assert len(opened.requests) > 1
    assert {"x", "dialog"} <= set(opened.said)
    assert opened.tell("document.documentElement.scrollWidth") > NARROW


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_runs(payload: str, browser: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(everywhere(tmp_path / "run", payload), encoding="utf-8")
    opened = Opened(browser, tmp_path / "report.html")
    opened.tell("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert (opened.said, len(opened.requests), opened.page.title()) == ([], 1, "Run report")
    assert opened.tell("document.querySelectorAll('[onerror], [onload], [onfocus], [style], [src]').length") == 0
    names = opened.tell("[...new Set([...document.body.querySelectorAll('*')].map((one) => one.localName))].sort()")
    known = {"a", "article", "button", "dd", "details", "div", "dl", "dt", "figcaption", "figure", "form", "h1", "h2"}
    known |= {"h3", "h4", "header", "input", "label", "li", "main", "output", "p", "path", "pre", "script", "span"}
    assert set(names) <= known | {"summary", "svg", "table", "tbody", "td", "th", "tr", "ul", "b"}


def test_there_are_as_many_points_as_rows_and_a_lost_one_is_marked_across_the_plot(browser: Any, file: Path) -> None:
    opened = Opened(browser, file)
    assert opened.tell(NUM_POINTS, "raw") == NUM_ROWS - 1
    assert opened.tell(NUM_POINTS, "not-finite") == 1
    assert f"{NUM_ROWS} of {NUM_ROWS} rows drawn" in opened.page.locator("figure").first.inner_text()
    plot = opened.page.locator("figure > svg").first.bounding_box()
    mark = opened.page.locator("figure > svg .not-finite").first.bounding_box()
    assert mark["height"] == pytest.approx(plot["height"], rel=0.05)
    across = (mark["x"] + mark["width"] / 2 - plot["x"]) / plot["width"]
    assert across == pytest.approx((LOST - 1) / (NUM_ROWS - 1), abs=0.01)


def test_what_is_underlined_are_the_trained_labels_of_200_samples(
    browser: Any, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    data = write_many_conversations(tmp_path / "data.json", conversations_file, num=NUM_SAMPLES)
    folder = write_run(tmp_path / "run", checkpoint=tiny_checkpoint, data=data)
    list(report(Wanted(folder, None, NUM_SAMPLES, is_json=False)))
    dataset = samples_of_run(folder, data)
    expected = [sum(label != IGNORE_INDEX for label in dataset[number]["labels"]) for number in range(NUM_SAMPLES)]
    assert Opened(browser, folder / "report.html").tell(UNDERLINED) == expected
    assert len(set(expected)) > 10


def test_plots_and_samples_are_there_with_javascript_off_and_in_print(browser: Any, file: Path) -> None:
    opened = Opened(browser, file, java_script_enabled=False)
    assert opened.page.locator("article:visible").count() == len(TEXTS)
    assert not opened.page.locator("#form").is_visible()
    for media in ("screen", "print"):
        opened.page.emulate_media(media=media)
        plots = opened.page.locator("figure > svg")
        assert plots.count() == NUM_PLOTS
        boxes = [plots.nth(number).bounding_box() for number in range(NUM_PLOTS)]
        assert [box["width"] > 300 and box["height"] > 100 for box in boxes] == [True] * NUM_PLOTS


def test_all_curves_are_ink_on_the_printed_page(browser: Any, file: Path) -> None:
    """A picture of the print without its curves differs from one with them in every plot."""
    opened = Opened(browser, file)
    opened.page.emulate_media(media="print")
    plots = opened.page.locator("figure > svg")
    drawn = [plots.nth(number).screenshot() for number in range(NUM_PLOTS)]
    opened.tell("document.querySelectorAll('figure > svg path').forEach((one) => one.remove())")
    assert [plots.nth(number).screenshot() != drawn[number] for number in range(NUM_PLOTS)] == [True] * NUM_PLOTS
    assert opened.page.pdf().startswith(b"%PDF")


def test_the_keyboard_alone_searches_turns_and_opens(browser: Any, file: Path) -> None:
    opened = Opened(browser, file)
    opened.tab_to("SUMMARY")
    opened.press("Enter")
    assert opened.tell("document.querySelector('details').open") is True
    opened.tab_to("search")
    assert opened.tell("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened.page.keyboard.type("np עולם")
    assert opened.page.locator("article:visible").count() == 0, "letters in the search turn no page"
    opened.press(*["Backspace"] * 7)
    opened.page.keyboard.type("עולם")
    assert opened.page.locator("article:visible").count() == 1
    assert opened.page.locator("#found").inner_text() == f"1 of {len(TEXTS)}"
    opened.press(*["Backspace"] * 4)
    opened.tab_to("next")
    opened.press("Enter")
    assert opened.tell("[document.activeElement.id, location.hash]") == ["s1", "#s1"]
    opened.press("n", "ArrowRight", "p")
    assert opened.tell("[document.activeElement.id, location.hash]") == ["s2", "#s2"]


def test_a_link_to_a_sample_opens_there(browser: Any, file: Path) -> None:
    opened = Opened(browser, file, anchor="#s17")
    box = opened.page.locator("#s17").bounding_box()
    assert 0 <= box["y"] < 900
    opened.press("n")
    assert opened.tell("[document.activeElement.id, location.hash]") == ["s18", "#s18"]


@pytest.mark.parametrize("history", [[], [row(1, None)], [row(1, 2.0)]])
def test_a_log_with_next_to_nothing_opens_without_a_word(
    history: Sequence[dict[str, Any]], browser: Any, tmp_path: Path
) -> None:
    list(report(Wanted(write_state(tmp_path, history), None, 0, is_json=False)))
    opened = Opened(browser, tmp_path / "report.html")
    assert (opened.said, len(opened.requests)) == ([], 1)


@pytest.mark.slow
def test_a_log_of_100000_rows_is_a_small_page_that_says_what_it_leaves_out(browser: Any, tmp_path: Path) -> None:
    list(report(Wanted(write_state(tmp_path, rows(100_000)), None, 0, is_json=False)))
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    opened = Opened(browser, tmp_path / "report.html")
    drawn = opened.tell(NUM_POINTS, "raw")
    assert f"{drawn} of 100000 rows drawn: of every stretch" in opened.page.locator("figure").first.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme: str, browser: Any, file: Path) -> None:
    why = "axe-core is missing: pip install -e .[dev]"
    axe: Any = pytest.importorskip("axe_playwright_python.sync_playwright", reason=why)
    opened = Opened(browser, file, color_scheme=scheme)
    opened.tell("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    told = axe.Axe().run(opened.page).response
    assert [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in told["violations"]] == []
    assert {"color-contrast", "label", "svg-img-alt"} <= {one["id"] for one in told["passes"]}, "these were looked at"
