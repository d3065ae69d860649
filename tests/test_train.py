"""The main job as a program: it runs under every launcher, repeats itself, and tells every mistake in one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.conftest import CONFIGS, ROOT
from tests.jobs import evaluate, main_flags, read_json, train_and_log
from tests.programs import Ended, run_main
from tests.ranks import free_port, run_ranks
from tests.reference import reference_model, summed_loss

BIN = Path(sys.executable).parent
TRAIN = str(ROOT / "ds_sft" / "train.py")
LAUNCHERS: dict[str, Callable[[int], list[str]]] = {
    "python": lambda _: [sys.executable, TRAIN],
    "deepspeed": lambda port: [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(port), TRAIN],
    "torchrun": lambda port: [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(port), TRAIN],
    "accelerate": lambda port: [
        *(str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "1", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port), TRAIN),
    ],
}
RANKS = {"python": 1, "accelerate": 1, "deepspeed": 2, "torchrun": 2}


def _launch(launcher: str, flags: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCHERS[launcher](free_port()), *flags],
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_same_file_gives_the_same_losses_under_every_launcher(
    launcher: str, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    changes = {"max_steps": 2, "per_device_train_batch_size": 4 // RANKS[launcher], "deepspeed": CONFIGS / "zero3.json"}
    launched = main_flags(tiny_checkpoint, conversations_file, tmp_path / "launched", **changes)
    done = _launch(launcher, launched)
    assert done.returncode == 0, done.stdout + done.stderr
    plain = main_flags(
        tiny_checkpoint, conversations_file, tmp_path / "plain", max_steps=2, per_device_train_batch_size=4
    )
    expected = run_ranks(train_and_log, plain, world_size=1)[0].losses
    history = read_json(tmp_path / "launched" / "trainer_state.json")["log_history"]
    assert [row["loss"] for row in history if "loss" in row] == pytest.approx(expected, abs=1e-5)
    told = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("step ")]
    assert len(told) == 2, "one line a step, from rank zero only"


def test_the_log_has_the_figures_of_every_step_as_numbers(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    flags = main_flags(tiny_checkpoint, conversations_file, tmp_path, max_steps=1)
    run_ranks(train_and_log, flags, world_size=1)
    row = read_json(tmp_path / "trainer_state.json")["log_history"][0]
    assert set(row) == {
        *("step", "epoch", "loss", "grad_norm", "learning_rate", "num_input_tokens_seen", "tokens_per_second"),
        *("supervised_tokens_per_second", "data_wait_share", "peak_memory_bytes", "seconds_left", "mfu"),
    }
    assert all(isinstance(value, int | float) for value in row.values())
    assert 0 < row["data_wait_share"] < 1
    assert 0 < row["mfu"] < 1


def test_tensorboard_is_on_by_default(tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path) -> None:
    flags = main_flags(tiny_checkpoint, conversations_file, tmp_path, max_steps=1)
    index = flags.index("--report_to")
    run_ranks(train_and_log, flags[:index] + flags[index + 2 :], world_size=1)
    assert len(list(tmp_path.glob("runs/*/events.out.tfevents.*"))) == 1


def test_the_resolved_settings_repeat_the_run(tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path) -> None:
    flags = main_flags(tiny_checkpoint, conversations_file, tmp_path / "one", max_steps=2, evaluation_strategy="no")
    first = run_ranks(train_and_log, flags, world_size=1)[0]
    recipe = str(tmp_path / "one" / "ds_sft.resolved.yaml")
    second = run_ranks(train_and_log, [recipe, "--output_dir", str(tmp_path / "two")], world_size=1)[0]
    assert second == first


def test_samples_made_on_access_by_workers_give_the_losses_of_those_made_beforehand(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    flags = main_flags(tiny_checkpoint, conversations_file, tmp_path / "eager", max_steps=2)
    lazy = main_flags(
        tiny_checkpoint,
        conversations_file,
        tmp_path / "lazy",
        max_steps=2,
        lazy_preprocess=True,
        dataloader_num_workers=2,
    )
    expected = run_ranks(train_and_log, flags, world_size=1)[0]
    assert run_ranks(train_and_log, lazy, world_size=1)[0] == expected


def test_the_folder_of_a_run_keeps_what_became_of_its_data(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    flags = main_flags(tiny_checkpoint, conversations_file, tmp_path, max_steps=1, num_data=5)
    run_ranks(train_and_log, flags, world_size=1)
    told = read_json(tmp_path / "data_counters.json")
    assert list(told) == ["train"]
    assert told["train"]["data"] == str(conversations_file)
    assert told["train"]["counters"]["records"] == 5
    assert told["train"]["counters"]["tokens_supervised"] > 0


def test_the_deepspeed_config_is_kept_with_every_auto_replaced(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    flags = main_flags(tiny_checkpoint, conversations_file, tmp_path, max_steps=1, deepspeed=CONFIGS / "zero3.json")
    run_ranks(train_and_log, [*flags, "--per_device_train_batch_size", "3"], world_size=2)
    text = (tmp_path / "ds_sft.resolved.deepspeed.json").read_text()
    assert '"auto"' not in text
    assert json.loads(text)["train_batch_size"] == 6


def test_evaluation_is_the_mean_over_all_supervised_tokens_on_two_ranks(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    from ds_sft.config.arguments import DataArguments
    from ds_sft.contracts import LayoutOptions
    from ds_sft.data.datasets import build_dataset
    from ds_sft.data.draft import Encoder
    from ds_sft.families import family_named

    held_out = tmp_path / "held_out.json"
    held_out.write_text(json.dumps(read_json(conversations_file)[:5]))  # odd, so that the last batch is filled up
    flags = main_flags(
        tiny_checkpoint,
        conversations_file,
        tmp_path,
        max_steps=1,
        learning_rate=0,
        num_data=2,  # cuts the training data only
        eval_data_path=held_out,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=2,
        deepspeed=CONFIGS / "zero3.json",
    )
    found = run_ranks(evaluate, flags, world_size=2)[0]
    family = family_named("flan_t5")
    tokenizer = family.load_tokenizer(tiny_checkpoint)
    data = DataArguments(data_path=str(held_out))
    samples = build_dataset(held_out, data=data, encoder=Encoder(family, tokenizer, LayoutOptions(2048)))
    model = reference_model(tiny_checkpoint, num_rows=len(tokenizer))
    rows = [{name: ids.tolist() for name, ids in samples[index].items()} for index in range(len(samples))]
    total, num_tokens = summed_loss(model, rows)
    assert found["eval_num_tokens"] == num_tokens
    assert found["eval_loss"] == pytest.approx(total.item() / num_tokens, abs=1e-5)


def test_old_command_lines_run_with_a_note_for_each_old_flag(
    tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    old = ["--evaluation_strategy", "no", "--warmup_ratio", "0.03", "--tf32", "True", "--overwrite_output_dir"]
    ended = run_main([*main_flags(tiny_checkpoint, conversations_file, tmp_path, max_steps=1), *old], tmp_path)
    assert ended.code == 0, ended.said
    for flag in ("--evaluation_strategy no", "--warmup_ratio 0.03", "tf32: True", "--overwrite_output_dir"):
        assert sum(line.startswith(flag) for line in ended.said.splitlines()) == 1, ended.said


@dataclass(frozen=True)
class Mistake:
    """A wrong command line: flags to change, a file to spoil, and how it must end."""

    code: int
    says: list[str]
    flags: dict[str, Any] = field(default_factory=dict)
    spoil: Callable[[Path], None] = lambda _: None
    data: str | None = None
    deepspeed: dict[str, Any] | None = None


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(read_json(file) | changes))

    return edit


def _edit_weights(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def _break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _remove_tokenizer(folder: Path) -> None:
    (folder / "spiece.model").unlink()


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _forget_tying(folder: Path) -> None:
    config = read_json(folder / "config.json")
    for name in ("tie_word_embeddings", "scale_decoder_outputs"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))


_HEAD, _NORM = "lm_head.weight", "decoder.final_layer_norm.weight"
_RECORD = '{"id": "a", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}'
MISTAKES = {
    "no data file": Mistake(66, ["data_path: file must exist, but", "nowhere.json"], {"data_path": "nowhere.json"}),
    "broken JSON": Mistake(
        65, ["record 2, line 2", f"byte {len(_RECORD) + 5}", "data.json"], data=f"[{_RECORD},\n {{x}}]"
    ),
    "wrong type": Mistake(65, ["record 2", "conversations"], data=f'[{_RECORD}, {{"conversations": 3}}]'),
    "broken line": Mistake(65, ["line 2", f"byte {len(_RECORD) + 2}"], data=f"{_RECORD}\n{{x}}\n"),
    "empty file": Mistake(65, ["at least one conversation", "is empty"], data=""),
    "nothing usable": Mistake(
        65, ["none of 1 records", "1 rejected_unknown_role"], data=f"[{_RECORD}]".replace("gpt", "bot")
    ),
    "strict": Mistake(
        65, ["record 1", "unknown_role"], {"strict_data": True}, data=f"[{_RECORD}]".replace("gpt", "bot")
    ),
    "everything too long": Mistake(65, ["none of", "prompt_too_long"], {"model_max_length": 3}),
    "unknown flag": Mistake(
        2, ["--learning_rat: flag must exist", "did you mean --learning_rate?"], {"learning_rat": 1}
    ),
    "wrong value": Mistake(2, ["learning_rate", "'fast'"], {"learning_rate": "fast"}),
    "wrong choice": Mistake(2, ["invalid choice: 'polynomail'"], {"lr_scheduler_type": "polynomail"}),
    "refused by transformers": Mistake(64, ["logging_steps", "non-zero"], {"logging_steps": 0}),
    "negative number": Mistake(64, ["learning_rate: must be at least 0, but is -0.001"], {"learning_rate": -1e-3}),
    "fp16": Mistake(64, ["fp16: flan_t5 must not be trained in it", "65504", "--bf16 True"], {"fp16": True}),
    "two loss modes": Mistake(
        64,
        ["--last_response_loss and --efficient_loss"],
        {"last_response_loss": True, "efficient_loss": True},
    ),
    "adapters of no rank": Mistake(64, ["lora_r: must be at least 1, but is 0"], {"lora_r": 0}),
    "no evaluation data": Mistake(64, ["eval_strategy: 'steps' needs data"], {"eval_strategy": "steps"}),
    "no DeepSpeed file": Mistake(66, ["deepspeed: file must exist", "zero9.json"], {"deepspeed": "zero9.json"}),
    "batch contradiction": Mistake(
        64, ["train_batch_size: must agree", "but is 7", '"auto"'], deepspeed={"train_batch_size": 7}
    ),
    "precision contradiction": Mistake(
        64, ["bf16.enabled: must agree with --bf16 False"], deepspeed={"bf16": {"enabled": True}}
    ),
    "two faults at once": Mistake(
        66, ["data_path: file must exist", "num_data: must be -1"], {"data_path": "nowhere.json", "num_data": -5}
    ),
    "output below a file": Mistake(74, ["output_dir: must be writable"], {"output_dir": "/dev/null/out"}),
    "no model": Mistake(66, ["model_name_or_path", "no/such-model"], {"model_name_or_path": "no/such-model"}),
    "unknown model type": Mistake(
        64, ["model_type must be one of t5 (flan_t5)", "'gpt2'"], spoil=_edit_config(model_type="gpt2")
    ),
    "config.json is no JSON": Mistake(65, ["config.json: must be JSON"], spoil=_break_config),
    "head missing": Mistake(
        65, [f"weight {_HEAD} must be stored"], spoil=_edit_weights(lambda weights: weights.pop(_HEAD))
    ),
    "norm missing": Mistake(
        65, [f"weight {_NORM} must be stored"], spoil=_edit_weights(lambda weights: weights.pop(_NORM))
    ),
    "extra weight": Mistake(
        65,
        ["weight surplus must belong to the model"],
        spoil=_edit_weights(lambda weights: weights.update(surplus=weights[_NORM].clone())),
    ),
    "wrong shape": Mistake(
        65, [_NORM], spoil=_edit_weights(lambda weights: weights.update({_NORM: weights[_NORM][:-1].clone()}))
    ),
    "untied head in a tied config": Mistake(
        65, ["lm_head.weight must equal shared.weight", "tie_word_embeddings to false"], spoil=_forget_tying
    ),
    "config.json of no model": Mistake(65, ["config.json: must describe a model"], spoil=_edit_config(d_model="wide")),
    "no conversation": Mistake(65, ["at least one conversation, but has 0"], data="[]"),
    "truncated weights": Mistake(65, ["model.safetensors: must be a whole safetensors file"], spoil=_truncate),
    "no tokenizer": Mistake(66, ["must hold tokenizer.json or spiece.model"], spoil=_remove_tokenizer),
}


def _make(name: str, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path, **more: Any) -> Ended:
    mistake = MISTAKES[name]
    model, data, output = tmp_path / "model", conversations_file, tmp_path / "out"
    shutil.copytree(tiny_checkpoint, model)
    mistake.spoil(model)
    if mistake.data is not None:
        data = tmp_path / "data.json"
        data.write_text(mistake.data)
    if mistake.deepspeed is not None:
        more["deepspeed"] = tmp_path / "deepspeed.json"
        more["deepspeed"].write_text(json.dumps(mistake.deepspeed))
    return run_main(main_flags(model, data, output, **{"max_steps": 1, **mistake.flags, **more}), tmp_path)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_its_exit_code_and_lines_that_say_what_to_do(
    name: str, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    ended = _make(name, tiny_checkpoint, conversations_file, tmp_path)
    told = "\n".join(ended.errors)
    assert ended.code == MISTAKES[name].code, ended.said
    assert all(words in told for words in MISTAKES[name].says), ended.said
    assert "Traceback" not in ended.said


@pytest.mark.parametrize("name", ["head missing", "norm missing", "extra weight", "wrong shape"])
def test_a_wrong_weight_is_told_under_zero_3_too(
    name: str, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    ended = _make(name, tiny_checkpoint, conversations_file, tmp_path, deepspeed=CONFIGS / "zero3.json")
    assert ended.code == MISTAKES[name].code, ended.said
    assert all(words in "\n".join(ended.errors) for words in MISTAKES[name].says), ended.said


def test_a_recipe_with_an_unknown_key_is_told(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model_name_or_path": "m", "data_path": "d", "output_dir": "o", "num_epochs": 1}))
    ended = run_main([str(recipe)], tmp_path)
    assert ended.code == 2
    assert ended.errors == ["--num_epochs: flag must exist, but does not; did you mean --num_train_epochs?"]


def test_the_deepspeed_launcher_passes_the_exit_code_on_and_two_ranks_tell_the_fault_once(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    flags = main_flags(tiny_checkpoint, Path("nowhere.json"), tmp_path, deepspeed=CONFIGS / "zero3.json")
    done = _launch("deepspeed", flags)
    assert done.returncode == 66, done.stdout + done.stderr
    told = [line for line in (done.stdout + done.stderr).splitlines() if "nowhere.json does not" in line]
    assert told == ["error: data_path: file must exist, but nowhere.json does not; check the path"]
