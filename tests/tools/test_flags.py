"""The help of a verb names the flags that it reads, as training has them."""

from ds_sft.tools.flags import flag_help


def test_the_help_names_flags_defaults_and_meanings() -> None:
    lines = flag_help().splitlines()
    assert lines[lines.index("--model_max_length (default: 2048)") + 1] == (
        "    Most tokens of one sequence; source and target have this limit each."
    )
    named = [line.split()[0] for line in lines if line.startswith("--")]
    assert named == [
        "--model_name_or_path",
        "--data_path",
        "--num_data",
        "--strict_data",
        "--last_response_loss",
        "--split_example_loss",
        "--efficient_loss",
        "--layout",
        "--cache_dir",
        "--model_max_length",
    ]
    assert "--data_path (required)" in lines
