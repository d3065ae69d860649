"""A recipe is plain YAML that maps flag names to values; everything else is refused with its place."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_sft.config.recipe import recipe_arguments
from ds_sft.errors import ConfigError, MissingInputError

FIXTURE_PER_TEST = [HealthCheck.function_scoped_fixture]


def flags(folder: Path, text: str | bytes) -> list[str]:
    file = folder / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return recipe_arguments(file)


def fault(folder: Path, text: str) -> str:
    """Give the message for a broken recipe, without the folder."""
    with pytest.raises(ConfigError) as caught:
        flags(folder, text)
    assert caught.value.exit_code == 64
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output_dir: out", ["--output_dir", "out"]),
        ("bf16: true\nfp16: false", ["--bf16", "True", "--fp16", "False"]),
        ("learning_rate: 1e-4", ["--learning_rate", "0.0001"]),
        ("learning_rate: 3E-05", ["--learning_rate", "3e-05"]),
        ("num_data: -1", ["--num_data", "-1"]),
        ("lora_target_modules: [q, v]", ["--lora_target_modules", "q", "v"]),
        ("lr_scheduler_kwargs: {a: 1, b: [x]}", ["--lr_scheduler_kwargs", '{"a": 1, "b": ["x"]}']),
        ("deepspeed: null\nseed: 3", ["--seed", "3"]),
        ("# nothing\n{}", []),
        ("run_name: 'é 1e-4'", ["--run_name", "é 1e-4"]),
    ],
)
def test_values_become_flags(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert flags(tmp_path, text) == expected


def test_a_missing_recipe_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as caught:
        recipe_arguments(tmp_path / "no.yaml")
    assert caught.value.exit_code == 66
    assert str(caught.value) == (
        f"recipe: file must exist, but {tmp_path}/no.yaml does not; check the path (flags begin with two dashes)"
    )


@pytest.mark.parametrize(
    ("text", "kind"), [("", "NoneType"), ("- a\n- b", "list"), ("just words", "str"), ("3", "int")]
)
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    assert fault(tmp_path, text) == (
        f"recipe.yaml: recipe must map flag names to values, but is a {kind}; write `name: value` lines"
    )


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("seed: 1\nseed: 2", "'seed' stands there twice", 2),
        ("a: {b: 1, b: 2}", "'b' stands there twice", 1),
        ("a: &x 1\nb: *x", "aliases (*name) are not read", 2),
        ("seed: !!int ''", "tags (tag:yaml.org,2002:int) are not read", 1),
        ("seed: 1\nbf16: !!bool x", "tags (tag:yaml.org,2002:bool) are not read", 2),
        ("a: !!python/object/apply:os.system [ls]", "tags (tag:yaml.org,2002:python/object/apply:os.system)", 1),
        ("a: !mine {b: 1}", "tags (!mine) are not read", 1),
        ("? [a]\n: b", "a key must be plain text", 1),
        ("a: 1\nb: [1", "expected ',' or ']', but got '<stream end>'", 2),
        ("a: 1\n\tb: 2", "found character '\\t' that cannot start any token", 2),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(tmp_path: Path, text: str, reason: str, line: int) -> None:
    told = fault(tmp_path, text)
    assert told.startswith("recipe.yaml: recipe must be plain YAML, but: ")
    assert reason in told
    assert f"line {line}, column" in told
    assert told.endswith("; mend that line")
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('a: "\\UFFFFFFFF"', "Python int too large"),
        ("a: 0x" + "f" * 5000, "Exceeds the limit"),
        ("a: 2020-13-01", "month must be in 1..12"),
        ("a: {b: 2020-01-01}", "date is not JSON serializable"),
        ("a: {2020-01-01: b}", "keys must be str"),
        ("a: " + "[" * 3000, "maximum recursion depth exceeded"),
    ],
)
def test_values_that_python_cannot_hold_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    told = fault(tmp_path, text)
    assert told.startswith("recipe.yaml: recipe must be plain YAML, but: ")
    assert reason in told


def test_a_file_far_too_large_for_a_recipe_is_refused_and_not_cut(tmp_path: Path) -> None:
    assert fault(tmp_path, "a: 1\n" + "#" * 1_000_000) == (
        "recipe.yaml: recipe must have at most 1000000 bytes, but has 1000005; is it a recipe?"
    )


YAML_WORDS = st.sampled_from(
    [
        *("a", "b: ", "\n", "  ", "- ", "? ", ": ", "[", "]", "{", "}", "&x ", "*x", "!!set ", "!", "|", ">", '"', "'"),
        *(
            "\\",
            "<<: ",
            "---\n",
            "%YAML 1.1\n",
            "#",
            "1e5",
            "0x",
            ".inf",
            "2001-01-01",
            "12:30:45",
            "=",
            "~",
            ",",
            "\t",
        ),
    ]
)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=FIXTURE_PER_TEST)
@given(text=st.lists(YAML_WORDS, max_size=12).map("".join).map(str.encode) | st.binary(max_size=20))
def test_any_text_gives_flags_or_a_config_error(tmp_path: Path, text: bytes) -> None:
    try:
        words = flags(tmp_path, text)
    except ConfigError:
        return
    assert all(isinstance(word, str) for word in words)
    assert not words or words[0].startswith("--")


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=FIXTURE_PER_TEST)
@given(text=st.lists(YAML_WORDS, max_size=8).map("".join))
def test_any_value_of_a_flag_gives_flags_or_a_config_error(tmp_path: Path, text: str) -> None:
    try:
        words = flags(tmp_path, f"seed: {text}")
    except ConfigError:
        return
    assert words[:1] in ([], ["--seed"])


def test_no_is_a_word_and_only_true_and_false_are_booleans(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("save_strategy: no\nreport_to: off\nbf16: true\n")
    assert recipe_arguments(file) == ["--save_strategy", "no", "--report_to", "off", "--bf16", "True"]
