"""Every fault in the settings is found before anything is loaded, and all are told at once."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ds_sft.config.parse import Settings, parse
from ds_sft.contracts import Family
from ds_sft.errors import ConfigError, DsSftError, MissingInputError, ModelError
from ds_sft.families import family_named
from ds_sft.model.folder import ModelFolder
from ds_sft.training.preflight import check

T5, YUAN2 = family_named("flan_t5"), family_named("yuan2")
FOLDER = ModelFolder(Path("m"), {})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings without a fault."""
    (tmp_path / "data.json").write_text("[]")
    flags = {"model_name_or_path": "m", "data_path": tmp_path / "data.json", "output_dir": tmp_path / "out"}
    return parse([word for name, value in flags.items() for word in (f"--{name}", str(value))])


def training(settings: Settings, **changes: Any) -> Settings:
    return replace(settings, training={**settings.training, **changes})


def data(settings: Settings, **changes: Any) -> Settings:
    return replace(settings, data=replace(settings.data, **changes))


def fault(settings: Settings, *, code: int = 64, family: Family = T5) -> str:
    with pytest.raises(DsSftError) as caught:
        check(settings, family=family, folder=FOLDER, world_size=1)
    assert caught.value.exit_code == code
    return str(caught.value)


def test_settings_without_a_fault_pass(settings: Settings) -> None:
    assert check(settings, family=T5, folder=FOLDER, world_size=1) is None


@pytest.mark.parametrize(
    ("name", "least", "value"),
    [
        ("per_device_train_batch_size", 1, 0),
        ("per_device_eval_batch_size", 1, -1),
        ("gradient_accumulation_steps", 1, 0),
        ("model_max_length", 2, 1),
        ("learning_rate", 0, -1e-05),
        ("adam_beta1", 0, -1.0),
        ("adam_epsilon", 0, -1e-8),
        ("seed", 0, -1),
        ("dataloader_num_workers", 0, -1),
        ("weight_decay", 0, -0.1),
        ("max_grad_norm", 0, -1.0),
        ("warmup_steps", 0, -1),
        ("label_smoothing_factor", 0, -0.5),
    ],
)
def test_a_number_below_its_limit_is_refused(settings: Settings, name: str, least: int, value: float) -> None:
    assert fault(training(settings, **{name: value})) == (
        f"{name}: must be at least {least}, but is {value}; give another value"
    )


def test_no_epochs_and_no_steps_are_refused(settings: Settings) -> None:
    assert fault(training(settings, num_train_epochs=0)) == (
        "num_train_epochs: must be above 0, but is 0; or give --max_steps"
    )
    check(training(settings, num_train_epochs=0, max_steps=1), family=T5, folder=FOLDER, world_size=1)


@pytest.mark.parametrize("value", [0, -2])
def test_num_data_is_all_or_at_least_one(settings: Settings, value: int) -> None:
    assert fault(data(settings, num_data=value)) == (
        f"num_data: must be -1 (all) or at least 1, but is {value}; give one of those"
    )


@pytest.mark.parametrize("name", ["data_path", "eval_data_path"])
def test_a_missing_data_file_is_told_with_flag_and_path(settings: Settings, name: str) -> None:
    assert fault(data(settings, **{name: "no.json"}), code=66) == (
        f"{name}: file must exist, but no.json does not; check the path"
    )


def test_two_loss_modes_are_one_fault_that_names_both(settings: Settings) -> None:
    assert fault(data(settings, last_response_loss=True, efficient_loss=True)) == (
        "loss mode: at most one may be given, but there are --last_response_loss and --efficient_loss; keep one"
    )


def test_evaluation_without_data_is_refused(settings: Settings) -> None:
    assert fault(training(settings, eval_strategy="steps")) == (
        "eval_strategy: 'steps' needs data, but eval_data_path is not given; add it or use no"
    )


def test_a_precision_that_the_family_refuses_is_told_with_the_reason(settings: Settings) -> None:
    assert fault(training(settings, fp16=True)) == (
        "fp16: flan_t5 must not be trained in it, but --fp16 is True: T5's feed-forward outputs exceed 65504, the "
        "largest fp16 number, and become inf; use --bf16 True, or neither flag for fp32"
    )


def test_two_precisions_are_refused(settings: Settings) -> None:
    tolerant = replace(T5, refused_precisions={})
    assert fault(training(settings, fp16=True, bf16=True), family=tolerant) == (
        "bf16, fp16: at most one may be True, but both are; keep --bf16 True"
    )


def test_faults_of_adapters_are_told_with_the_others(settings: Settings) -> None:
    assert fault(replace(settings, lora=replace(settings.lora, lora_r=0))) == (
        "lora_r: must be at least 1, but is 0; 8 to 64 are usual"
    )


def test_an_output_dir_below_a_file_is_refused(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "data.json" / "out"
    assert fault(training(settings, output_dir=str(folder)), code=74) == (
        f"output_dir: must be writable, but {folder}: Not a directory; choose another folder"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_dir_without_permission_is_refused(settings: Settings, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert fault(settings, code=77) == (
        f"output_dir: must be writable, but {tmp_path / 'out'}: Permission denied; check its mode"
    )


def test_the_output_dir_is_made_and_left_empty(settings: Settings) -> None:
    check(settings, family=T5, folder=FOLDER, world_size=1)
    assert list(settings.output_dir.iterdir()) == []


def test_the_deepspeed_file_is_given_back(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    found = check(training(settings, deepspeed=str(tmp_path / "ds.json")), family=T5, folder=FOLDER, world_size=1)
    assert found == {"zero_optimization": {"stage": 2}}


def test_the_deepspeed_file_is_held_against_flags_and_ranks(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text('{"train_batch_size": 8}')
    given = training(settings, deepspeed=str(file), per_device_train_batch_size=8, gradient_accumulation_steps=1)
    check(given, family=T5, folder=FOLDER, world_size=1)
    with pytest.raises(ConfigError) as caught:
        check(given, family=T5, folder=FOLDER, world_size=2)
    assert str(caught.value) == (
        f"{file}: train_batch_size: must agree with the flags (8 per device x 1 accumulation x 2 ranks), but is 8; "
        'set it to "auto"'
    )


def test_all_faults_are_told_at_once_and_the_first_decides_the_code(settings: Settings) -> None:
    given = training(data(settings, data_path="no.json", num_data=0), seed=1, learning_rate=-1.0, deepspeed="no.ds")
    with pytest.raises(MissingInputError) as caught:
        check(given, family=T5, folder=FOLDER, world_size=1)
    assert [line.partition(":")[0] for line in caught.value.faults] == [
        "data_path",
        "learning_rate",
        "num_data",
        "deepspeed",
    ]


def test_what_has_no_effect_is_said(settings: Settings, told: pytest.LogCaptureFixture) -> None:
    given = replace(data(settings, efficient_loss=True), notes=("--tpu_num_cores 8: ignored",))
    given = replace(given, model=replace(given.model, trust_remote_code=True))
    check(given, family=T5, folder=FOLDER, world_size=1)
    assert told.messages == [
        "--tpu_num_cores 8: ignored",
        "trust_remote_code: ignored, because code from a model folder is never executed here",
        "efficient_loss: ignored, because flan_t5 has one loss only: on every answer",
    ]
    assert {record.levelname for record in told.records} == {"WARNING"}


def test_what_cannot_be_resumed_is_told_with_the_other_faults(settings: Settings) -> None:
    given = training(settings, resume_from_checkpoint="True", seed=-1)
    told = fault(given, code=66).splitlines()
    assert [line.partition(":")[0] for line in told] == ["resume_from_checkpoint", "seed"]


@pytest.mark.parametrize("name", ["learning_rate", "adam_epsilon", "num_train_epochs", "logging_steps", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(settings: Settings, name: str, value: float) -> None:
    told = fault(training(settings, **{name: value}))
    assert told == f"{name}: must be finite, but is {value}; give another value"


@pytest.mark.parametrize(("name", "most", "value"), [("adam_beta2", 0.999999, 1.0), ("seed", 2**32 - 1, 2**32)])
def test_a_number_above_its_limit_is_refused(settings: Settings, name: str, most: float, value: float) -> None:
    told = fault(training(settings, **{name: value}))
    assert told == f"{name}: must be at most {most}, but is {value}; give another value"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("fsdp", "full_shard", "weights are partitioned by DeepSpeed here; use --deepspeed"),
        ("neftune_noise_alpha", 5.0, "its hook sits on a layer that no family calls; leave it out"),
        ("use_liger_kernel", True, "the loss is ours here; leave it out"),
    ],
)
def test_what_our_trainer_would_not_do_is_refused(settings: Settings, name: str, value: object, reason: str) -> None:
    assert fault(training(settings, **{name: value})) == f"{name}: must not be given, but is {value!r}: {reason}"


def test_a_loss_that_depends_on_the_split_is_refused(settings: Settings) -> None:
    assert fault(training(settings, average_tokens_across_devices=False)).startswith(
        "average_tokens_across_devices: must be True, but is False"
    )


def test_a_best_metric_that_is_not_the_loss_is_refused(settings: Settings) -> None:
    assert fault(training(settings, metric_for_best_model="perplexity")).startswith(
        "metric_for_best_model: must be loss or eval_loss, but is 'perplexity'"
    )


def test_a_tracker_that_is_not_installed_is_refused(settings: Settings) -> None:
    told = fault(training(settings, report_to=["tensorboard", "no-tracker"]))
    assert told.startswith("report_to: must be installed (found: all, none, ")
    assert "but is 'no-tracker'" in told


def test_the_model_folder_as_output_folder_is_refused(settings: Settings, tmp_path: Path) -> None:
    same = replace(settings, model=replace(settings.model, model_name_or_path=str(tmp_path / "x" / ".." / "out")))
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    (tmp_path / "x").mkdir()
    assert fault(same).startswith("output_dir: must not be the folder of the model, but both are ")


@pytest.mark.parametrize("optim", ["adafactor", "adamw_bnb_8bit", "galore_adamw"])
def test_an_optimizer_that_no_checkpoint_can_hold_is_refused_where_checkpoints_are_saved(
    settings: Settings, optim: str
) -> None:
    assert fault(training(settings, optim=optim, save_strategy="steps")) == (
        f"optim: must keep one number for each weight where checkpoints are saved, but {optim} does not; use "
        "adamw_torch, or --save_strategy no"
    )
    check(training(settings, optim=optim, save_strategy="no"), family=T5, folder=FOLDER, world_size=1)


def test_a_best_loss_is_the_lowest(settings: Settings) -> None:
    given = training(settings, load_best_model_at_end=True, greater_is_better=True)
    assert fault(given) == "greater_is_better: must be False for a loss, but is True; leave it out"


def test_what_config_json_cannot_be_is_told_before_anything_is_loaded(settings: Settings) -> None:
    folder = ModelFolder(Path("m"), {"use_moe": True})
    with pytest.raises(ModelError) as caught:
        check(settings, family=YUAN2, folder=folder, world_size=1)
    assert str(caught.value).startswith("m/config.json: model must be a dense Yuan2, but use_moe describe a mixture")


@pytest.mark.parametrize(
    ("family", "known"), [(T5, "sdpa, eager"), (YUAN2, "sdpa, eager, flash_attention_2, flex_attention")]
)
def test_an_attention_that_the_family_does_not_have_is_refused(settings: Settings, family: Family, known: str) -> None:
    given = replace(settings, model=replace(settings.model, attn_implementation="paged"))
    assert fault(given, family=family) == (
        f"attn_implementation: {family.name} must have one of {known}, but is 'paged'; choose one"
    )


@pytest.mark.parametrize("attention", ["flex_attention", "flash_attention_2"])
def test_an_attention_that_trains_on_gpus_only_is_refused_on_a_cpu(settings: Settings, attention: str) -> None:
    given = replace(settings, model=replace(settings.model, attn_implementation=attention))
    told = fault(training(given, use_cpu=True), family=YUAN2)
    assert told.startswith(f"attn_implementation: must be sdpa or eager on a CPU, but is {attention!r}")
    check(training(given, use_cpu=False), family=YUAN2, folder=FOLDER, world_size=1)


@pytest.mark.parametrize("mode", ["last_response", "split_example"])
def test_fastchats_layout_goes_with_the_efficient_loss_only(settings: Settings, mode: str) -> None:
    given = data(settings, layout="fastchat", **{f"{mode}_loss": True})
    assert fault(given, family=YUAN2) == (
        f"layout: fastchat goes with --efficient_loss only, but --{mode}_loss is given; drop one"
    )
    for flags in ({"layout": "fastchat"}, {"layout": "fastchat", "efficient_loss": True}):
        check(data(settings, **flags), family=YUAN2, folder=FOLDER, world_size=1)


def test_without_a_loss_mode_it_is_said_which_one_is_used(settings: Settings, told: pytest.LogCaptureFixture) -> None:
    check(settings, family=YUAN2, folder=FOLDER, world_size=1)
    assert "loss mode: none was asked for, so every answer carries loss, as with --efficient_loss True" in told.messages
    told.clear()
    check(data(settings, split_example_loss=True), family=YUAN2, folder=FOLDER, world_size=1)
    check(settings, family=T5, folder=FOLDER, world_size=1)
    assert [line for line in told.messages if "loss" in line] == []


def test_a_layout_that_a_family_does_not_have_is_ignored_with_a_line(
    settings: Settings, told: pytest.LogCaptureFixture
) -> None:
    check(data(settings, layout="fastchat"), family=T5, folder=FOLDER, world_size=1)
    assert "layout: fastchat -> native, because flan_t5 has one layout only" in told.messages


@pytest.mark.parametrize("size", ["lots", "5", "5 apples", "-1GB", "0GB", ""])
def test_a_shard_size_that_is_none_is_told_before_training_and_not_at_the_export(settings: Settings, size: str) -> None:
    assert fault(training(settings, max_shard_size=size)) == (
        f"max_shard_size: must be a size such as 5GB or 500MB, but is {size!r}; give one"
    )
    check(training(settings, max_shard_size="1.5gb"), family=T5, folder=FOLDER, world_size=1)
