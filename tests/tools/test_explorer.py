"""The page runs its own script only, contacts nobody, and holds the users' texts as data."""

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ds_sft.errors import SaveError
from ds_sft.tools.explorer import explorer_page, write_explorer
from ds_sft.tools.samples import Piece, Sample

BREAK_OUTS = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]></SCRIPT ><svg onload=alert(1)>",
    "%data% %script-hash%",
    "\u2028\u2029'\"`${alert(1)}",
    "&lt;/script&gt;",
]


class Elements(HTMLParser):
    """Collects the elements of a page and the text of its data."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.data = ""
        self._is_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count an element."""
        self.names[tag] += 1
        self.attributes += attrs
        self._is_data = ("id", "data") in attrs

    def handle_endtag(self, tag: str) -> None:
        """Leave an element."""
        self._is_data = False

    def handle_data(self, data: str) -> None:
        """Keep the data."""
        if self._is_data:
            self.data += data


def sample_of(text: str, *, identity: str = "") -> Sample:
    return Sample(1, identity, 0, [1], [1], {"target": (Piece("text", text, True, 1),)}, 0)


def page_of(*texts: str, name: str = "d.json") -> str:
    return explorer_page([sample_of(text, identity=text) for text in texts], counters=Counter(records=1), name=name)


def parsed(page: str) -> Elements:
    elements = Elements()
    elements.feed(page)
    elements.close()
    return elements


def data_of(page: str) -> Any:
    return json.loads(parsed(page).data)


@pytest.mark.parametrize("text", BREAK_OUTS)
def test_no_text_or_file_name_becomes_an_element(text: str) -> None:
    harmless, tried = parsed(page_of("x")), parsed(page_of(text, name=text))
    assert tried.names == harmless.names
    assert tried.attributes == harmless.attributes


def test_every_text_arrives_in_the_page_as_it_would_in_the_terminal() -> None:
    told = data_of(page_of(*BREAK_OUTS, "\x1b\u202ea\nb\x7f"))
    texts = [piece[2] for sample in told["samples"] for side in sample["sides"] for piece in side["pieces"]]
    assert texts[:4] == BREAK_OUTS[:4]
    assert texts[4:] == ["<U+2028><U+2029>'\"`${alert(1)}", "&lt;/script&gt;", "␛<U+202E>a↵\nb␡"]


def test_what_the_page_holds_is_what_was_given() -> None:
    pair = Sample(
        record=3,
        identity="v",
        index=1,
        input_ids=[5, 1],
        labels=[6],
        sides={
            "source": (Piece("text", "q", False, 1), Piece("eos", "</s>", False, 1)),
            "target": (Piece("text", "a", True, 1),),
        },
        num_cut=2,
    )
    assert data_of(explorer_page([pair], counters=Counter(samples=1, empty_answer=0), name="d.json")) == {
        "name": "d.json",
        "counters": {"samples": 1},
        "samples": [
            {
                "heading": "record 3 'v', sample 1: 1 of 3 tokens trained (33 %)",
                "cut": 2,
                "sides": [
                    {"name": "source", "tokens": 2, "pieces": [[False, False, "q"], [True, False, "</s>"]]},
                    {"name": "target", "tokens": 1, "pieces": [[False, True, "a"]]},
                ],
            }
        ],
    }


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else() -> None:
    page = page_of("x")

    def hash_of(element: str) -> str:
        content = page.split(f"<{element}>")[1].split(f"</{element}>")[0]
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy == (
        f"default-src 'none'; style-src {hash_of('style')}; script-src {hash_of('script')}; "
        "base-uri 'none'; form-action 'none'"
    )


def test_the_page_names_no_other_file_and_no_server() -> None:
    elements = parsed(page_of("x"))
    assert [name for name, _ in elements.attributes if name in {"src", "href", "action", "style"}] == []
    assert [name for name, _ in elements.attributes if name.startswith("on")] == []
    assert re.findall(r"https?:|//\w|fetch|XMLHttp|innerHTML|eval|import\(", page_of("x")) == []


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_explorer(tmp_path / name, [sample_of("x")], counters=Counter(records=1), name="d.json")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_page_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"html: must be writable, but .*No such file"):
        write_explorer(tmp_path / "none" / "a.html", [], counters=Counter(), name="d.json")
