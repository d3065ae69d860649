"""What a doctor says, as text and as JSON."""

import pytest

from ds_sft.tools.facts import Fact, as_lines, as_objects, fault, faults_in, good, warning

FACTS = [good("disk", "wide"), warning("clock", "slow", "mend it"), fault("h1", "gone\x1b[2J\nhere", "look")]


@pytest.mark.parametrize(
    ("fact", "line"),
    [
        (FACTS[0], "✓ disk: wide"),
        (FACTS[1], "! clock: slow -> mend it"),
        (FACTS[2], "✗ h1: gone␛[2J here -> look"),
    ],
)
def test_a_fact_is_one_safe_line_with_its_fix(fact: Fact, line: str) -> None:
    assert [told.plain for told in as_lines([fact])] == [line]


def test_only_faults_stop_a_launch() -> None:
    assert faults_in(FACTS) == [FACTS[2]]


def test_json_has_every_field() -> None:
    assert as_objects(FACTS[1:2]) == [{"name": "clock", "level": "warning", "told": "slow", "fix": "mend it"}]
