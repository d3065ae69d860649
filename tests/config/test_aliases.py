"""Old flags are translated with a note that names the flag and the reason; nothing else is touched."""

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_sft.config.aliases import ALIASES, translate
from ds_sft.config.arguments import DataArguments, LoraArguments, ModelArguments, TrainingArguments

FLAGS = {
    field.name
    for kind in (ModelArguments, DataArguments, LoraArguments, TrainingArguments)
    for field in fields(kind)
    if field.init
}


@pytest.mark.parametrize(
    ("given_flags", "arguments", "note"),
    [
        (
            ["--evaluation_strategy", "steps"],
            ("--eval_strategy", "steps"),
            "--evaluation_strategy steps: read as --eval_strategy steps, because transformers renamed it",
        ),
        (
            ["--warmup_ratio=0.03"],
            ("--warmup_steps", "0.03"),
            "--warmup_ratio 0.03: read as --warmup_steps 0.03, because a value below 1 is a share of all steps",
        ),
        (
            ["--adafactor"],
            ("--optim", "adafactor"),
            "--adafactor: read as --optim adafactor, because it is an optimizer like the others",
        ),
        (
            ["--adafactor", "False"],
            (),
            "--adafactor False: ignored, because it is an optimizer like the others",
        ),
        (
            ["--group-by-length", "True"],
            ("--train_sampling_strategy", "group_by_length"),
            (
                "--group_by_length True: read as --train_sampling_strategy group_by_length, "
                "because transformers renamed it"
            ),
        ),
        (["--group_by_length", "no"], (), "--group_by_length no: ignored, because transformers renamed it"),
        (["--no_cuda"], ("--use_cpu", "true"), "--no_cuda: read as --use_cpu true, because transformers renamed it"),
        (["--no_cuda", "False"], (), "--no_cuda False: ignored, because transformers renamed it"),
        (
            ["--overwrite_output_dir", "True"],
            (),
            "--overwrite_output_dir True: ignored, because an output folder is never emptied",
        ),
        (
            ["--fp16_opt_level", "O1"],
            (),
            "--fp16_opt_level O1: ignored, because transformers 5 removed it and it has no effect any more",
        ),
    ],
)
def test_an_old_flag_is_renamed_or_dropped_with_a_note(
    given_flags: list[str], arguments: tuple[str, ...], note: str
) -> None:
    translation = translate(given_flags)
    assert (translation.arguments, translation.notes) == (arguments, (note,))


def test_logging_dir_becomes_an_environment_variable() -> None:
    translation = translate(["--logging_dir", "logs"])
    assert translation.arguments == ()
    assert translation.environment == {"TENSORBOARD_LOGGING_DIR": "logs"}
    assert "\n".join(translation.notes) == (
        "--logging_dir logs: set TENSORBOARD_LOGGING_DIR=logs instead, because transformers 5 takes it from the "
        "environment"
    )


def test_gradient_checkpointing_is_renamed_without_a_note() -> None:
    translation = translate(["--gradient_checkpointing"])
    assert (translation.arguments, translation.notes) == (("--activation_checkpointing", "true"), ())


def test_dashes_and_equals_signs_become_underscores_and_words() -> None:
    translation = translate(["--output-dir=a-b=c", "--learning-rate", "1e-4"])
    assert translation.arguments == ("--output_dir", "a-b=c", "--learning_rate", "1e-4")


def test_todays_flags_keep_their_order_and_values() -> None:
    line = ["first", "--lora_target_modules", "q", "v", "--bf16", "--num_data", "-1", "--", "-x"]
    translation = translate(line)
    assert translation.arguments == tuple(line)
    assert (translation.notes, dict(translation.environment)) == ((), {})


def test_every_new_name_is_a_flag_that_exists() -> None:
    assert {alias.new for alias in ALIASES.values() if alias.new} <= FLAGS


def test_no_flag_of_today_is_taken_for_an_old_one() -> None:
    # transformers itself still accepts these two under both names.
    assert set(ALIASES) & FLAGS == {"gradient_checkpointing", "gradient_checkpointing_kwargs"}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.text(max_size=8) | st.sampled_from([f"--{name}" for name in ALIASES]) | st.sampled_from(["--", "="]))
)
def test_any_words_are_translated_without_an_exception(words: list[str]) -> None:
    translation = translate(words)
    old = {word.removeprefix("--").partition("=")[0] for word in translation.arguments if word.startswith("--")}
    assert not old & {name for name, alias in ALIASES.items() if alias.new != name}
