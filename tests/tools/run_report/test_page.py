"""The page shows what the log has, as text only, and asks nobody for anything."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.tools.run_report.examples import Examples
from ds_sft.tools.run_report.page import page_of
from ds_sft.tools.run_report.predictions import read_predictions
from ds_sft.tools.run_report.record import read_run
from ds_sft.tools.run_report.surroundings import read_surroundings
from ds_sft.tools.samples import Piece, Sample
from ds_sft.visible import visible
from tests.tools.run_report.folders import Page, num_points, row, rows, write_events, write_predictions, write_state

PAYLOADS = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>alert(1)</script>",
    "]]></SCRIPT ><svg onload=alert(1)>",
    "'\"><b onmouseover=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "{% endraw %}{{ ''.__class__ }}{# open",
    "javascript:alert(1)",
    "</title></style><script>alert(1)</script>",
    "\u2028`${alert(1)}`&lt;img&gt;\x00\x1b]0;x\x07\u202e",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    '<a href="javascript:alert(1)" autofocus onfocus=alert(1)>x</a>',
    "<details open ontoggle=alert(1)><summary>x</summary>",
    "<math><mtext></table><mglyph><style><img src onerror=alert(1)>",
    "<base href=//elsewhere.example/><link rel=stylesheet href=//elsewhere.example/a.css>",
    "<meta http-equiv=refresh content='0;url=data:text/html,<script>alert(1)</script>'>",
    "<form action=//elsewhere.example/><input name=a autofocus><button>go</button>",
    "<video src=x onerror=alert(1)><audio src=x onerror=alert(1)>",
    "&#60;script&#62;alert(1)&#60;/script&#62;\ufeff",
    '" style="position:fixed;inset:0;background:url(//elsewhere.example/a)" x="',
    "</td></tr></table></pre></article></main><object data=x></object><style>*{display:none}</style>",
]


def sample_of(text: str, *, identity: str = "") -> Sample:
    source = (Piece("text", text, False, 3), Piece("eos", "</s>", False, 1))
    target = (Piece("text", text, True, 2), Piece("eos", "</s>", True, 1), Piece("text", text, False, 4))
    labels = [5, 6, 1, *[IGNORE_INDEX] * 4]
    return Sample(1, identity, 0, [1, 2, 3, 1], labels, {"source": source, "target": target}, 7)


def page_text(folder: Path, *samples: Sample, note: str = "") -> str:
    run = read_run(folder)
    return page_of(run, read_surroundings(run), Examples(samples, note), read_predictions(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with everything that can be drawn."""
    history = [row(1, 3.0), row(2, None, left_out_steps=1), row(3, 2.0), row(4, 1.0), {"step": 4, "eval_loss": 2.0}]
    write_events(tmp_path, ("start", {"step": 0, "model": "M"}), ("resume", {"step": 3, "model": "M"}))
    return write_state(tmp_path, history)


def test_every_row_is_a_point_but_those_that_are_not_finite_which_are_marked(folder: Path) -> None:
    page = Page(page_text(folder))
    assert num_points(page.paths_of_first_plot("raw")) == 3
    assert num_points(page.paths_of_first_plot("dots")) == 1
    assert num_points(page.paths_of_first_plot("not-finite")) == 1
    assert page.paths_of_first_plot("raw") == "M666.7 120.0L1000.0 240.0M0.0 0.0h0"


@pytest.mark.parametrize("num", [1, 2, 120, 1200])
def test_point_counts_are_row_counts(num: int, tmp_path: Path) -> None:
    page = Page(page_text(write_state(tmp_path, [*rows(num), {"step": num, "eval_loss": 1.0}])))
    assert num_points(page.paths_of_first_plot("raw")) == num
    assert f"{num} of {num} rows drawn" in page.texts[page.of("figure")[0]]


def test_many_rows_are_thinned_out_and_the_page_says_so(tmp_path: Path) -> None:
    text = page_text(write_state(tmp_path, [*rows(100_000), {"step": 9, "eval_loss": 1.0}]))
    page = Page(text)
    drawn = num_points(page.paths_of_first_plot("raw"))
    assert 300 <= drawn <= 1500
    assert f"{drawn} of 100000 rows drawn: of every stretch" in page.texts[page.of("figure")[0]]
    assert len(text) < 1_000_000


@pytest.mark.parametrize("history", [[], [{"step": 1, "eval_loss": 1.0}], [row(1, None)], [{"step": 1, "loss": 1.0}]])
def test_a_log_with_next_to_nothing_is_a_page_too(history: list[dict[str, float]], tmp_path: Path) -> None:
    assert Page(page_text(write_state(tmp_path, history))).of("h1")


def test_marked_tokens_are_the_trained_labels(tmp_path: Path) -> None:
    samples = [sample_of("a"), sample_of("b\nc")]
    page = Page(page_text(write_state(tmp_path, rows(2)), *samples))
    articles = page.of("article")
    assert len(articles) == len(samples)
    for sample, start, end in zip(samples, articles, [*articles[1:], len(page.elements)], strict=True):
        trained = [index for index in page.of("span", style="tr") if start < index < end]
        counts = [int(page.elements[index][1]["data-tokens"] or 0) for index in trained]
        assert sum(counts) == sum(label != IGNORE_INDEX for label in sample.labels) == 3
    assert page.texts[page.of("pre")[3]] == "b↵\nc</s>b↵\nc⟂ 7 tokens cut"


def everywhere(folder: Path, text: str) -> str:
    """Put a text into every place that comes from a file."""
    start = {"step": 0, "model": text, text: text, "versions": {text: text}}
    write_events(folder, ("start", start), ("warning", {"message": text}), ("end", {"outcome": text, "reason": text}))
    (folder / "ds_sft.resolved.yaml").write_text(text)
    counters = {text: {"data": text, "counters": {text: text}, "rejected": [text]}}
    (folder / "data_counters.json").write_text(json.dumps(counters))
    write_predictions(folder, {"step": 1, **dict.fromkeys(("place", "question", "expected", "prediction"), text)})
    facts = {"versions": {text: text}, text: text}
    files = {f"a{text}".replace("\0", ""): {"size": 1, "sha256": text}}
    manifest = {"format": 1, "step": 1, "world_size": 1, "files": files, "facts": facts}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    write_state(folder, [row(1, 2.0, **{text: 1.0}), {"step": 1, "eval_loss": 1.0, f"eval_{text}": 1.0}])
    return page_text(folder, sample_of(text, identity=text), note=text)


MEASURED = {
    "tokens_per_second": 100.0,
    "supervised_tokens_per_second": 25.0,
    "peak_memory_bytes": 3 * 2**29,
    "data_wait_share": 0.0125,
    "mfu": 0.4,
}


def test_every_measured_figure_has_a_plot_and_a_column_with_its_unit(tmp_path: Path) -> None:
    page = Page(page_text(write_state(tmp_path, [row(1, 2.0, **MEASURED), row(2, 1.0, **MEASURED)])))
    assert [page.texts[index] for index in page.of("h3")] == [
        "loss",
        "learning rate",
        "gradient norm",
        "tokens per second",
        "supervised tokens per second",
        "peak memory of a rank, GiB",
        "waiting for data, % of the time",
        "MFU, % of the measured peak",
    ]
    table = page.of("table")[0]
    cells = [page.texts[index] for index in page.of("td") if index > table][:9]
    assert cells == ["1", "2", "0.0001", "1.5", "100", "25", "1.5", "1.25", "40"]
    assert [page.texts[index] for index in page.of("th", scope="col")[:3]] == ["step", "loss", "learning rate"]


@pytest.mark.parametrize(("planned", "label"), [(2**31, "from 1.5 to 2"), (None, "from 1.5 to 1.5"), ("many", "1.5")])
def test_the_planned_memory_is_a_line_where_the_run_tells_it(planned: Any, label: str, tmp_path: Path) -> None:
    write_events(tmp_path, ("start", {"step": 0, "planned_memory": planned}))
    page = Page(page_text(write_state(tmp_path, [row(step, 1.0, **MEASURED) for step in (1, 2, 3)])))
    (memory,) = [one for one in page.of("svg", role="img") if "memory" in (page.elements[one][1]["aria-label"] or "")]
    assert label in (page.elements[memory][1]["aria-label"] or "")
    assert bool(page.of("path", style="planned")) == isinstance(planned, int)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_a_file_becomes_an_element(payload: str, tmp_path: Path) -> None:
    harmless, tried = Page(everywhere(tmp_path / "a", "x")), Page(everywhere(tmp_path / "b", payload))
    assert tried.elements == harmless.elements
    assert tried.texts[0].count(visible(payload)) >= 29, "it is shown in every place"
    assert tried.texts[tried.of("title")[0]] == "Run report"
    assert [text for text in tried.texts if set(text) & set("\x00\x1b\u202e")] == []


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else(folder: Path) -> None:
    text = page_text(folder, sample_of("x"))

    def hash_of(element: str) -> str:
        content = text.split(f"<{element}>")[1].split(f"</{element}>")[0]
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy == (
        f"default-src 'none'; style-src {hash_of('style')}; script-src {hash_of('script')}; "
        "base-uri 'none'; form-action 'none'"
    )


def test_the_page_names_no_other_file_and_no_server(folder: Path) -> None:
    page = Page(page_text(folder, sample_of("x")))
    names = {name for _, attributes in page.elements for name in attributes}
    assert names & {"src", "action", "style", "srcset", "poster"} == set()
    assert [name for name in names if name.startswith("on")] == []
    links = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    assert links == ["#s1"]
    assert re.findall(r"https?:|fetch|XMLHttp|innerHTML|eval\(|import\(", page_text(folder, sample_of("x"))) == []


def test_every_plot_has_a_label_and_the_values_a_table(folder: Path) -> None:
    page = Page(page_text(folder))
    labels = [page.elements[index][1]["aria-label"] for index in page.of("svg", role="img")]
    assert labels[0] == "loss, from 1 to 3, steps 1 to 4"
    assert len(labels) == len(page.of("figure"))
    assert "2not finite0.00011.5" in page.texts[page.of("table")[0]].replace("\n", "")
