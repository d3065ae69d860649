"""Yuan2 in the main job: the same losses however the work is split, the right tokens supervised, an official export."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ds_sft.families import family_named
from tests.conftest import CONFIGS, ROOT
from tests.jobs import Trained, evaluate, first_batch, main_flags, read_json, train_and_log
from tests.programs import run_main
from tests.ranks import run_ranks

TABLE = "model.embed_tokens.weight"
GOLDEN = ROOT / "tests" / "golden" / "losses" / "yuan2.json"
ORIGIN = (
    "8 steps of the main job on the tiny Yuan2 and the quick start's conversations: one process, micro-batch 4, AdamW "
    "3e-4 constant, fp32, torch 2.13.0 on a CPU; written by pytest --update-golden "
    "tests/families/yuan2/test_main_job.py"
)
ZERO2, ZERO3 = {"deepspeed": CONFIGS / "zero2.json"}, {"deepspeed": CONFIGS / "zero3.json"}
TWO_BY_TWO = {"per_device_train_batch_size": 2}
SPLITS: dict[str, tuple[int, dict[str, Any]]] = {
    "accumulation 2": (1, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "padding on the left": (1, {"per_device_train_batch_size": 4, "padding_side": "left"}),
    "eager attention": (1, {"per_device_train_batch_size": 4, "attn_implementation": "eager"}),
    "gradient checkpointing": (1, {"per_device_train_batch_size": 4, "gradient_checkpointing": True}),
    "two ranks without DeepSpeed": (2, TWO_BY_TWO),
    "ZeRO-2, two ranks": (2, {**TWO_BY_TWO, **ZERO2}),
    "ZeRO-3, two ranks": (2, {**TWO_BY_TWO, **ZERO3}),
    "ZeRO-3, two ranks, gradient checkpointing, lazy": (
        2,
        {**TWO_BY_TWO, "gradient_checkpointing": True, "lazy_preprocess": True, **ZERO3},
    ),
}


@pytest.fixture(scope="module")
def reference(tiny_yuan2: Path, conversations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One process, one micro-batch of four, no DeepSpeed."""
    folder = tmp_path_factory.mktemp("reference")
    flags = main_flags(tiny_yuan2, conversations_file, folder, per_device_train_batch_size=4)
    return run_ranks(train_and_log, flags, world_size=1)[0]


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_of_the_work_gives_the_same_losses_and_gradient_norms(
    split: str, reference: Trained, tiny_yuan2: Path, conversations_file: Path, tmp_path: Path
) -> None:
    world_size, changes = SPLITS[split]
    flags = main_flags(tiny_yuan2, conversations_file, tmp_path, **changes)
    trained = run_ranks(train_and_log, flags, world_size=world_size)[0]
    assert len(trained.losses) == 8
    assert trained.losses == pytest.approx(reference.losses, abs=1e-5)
    assert trained.grad_norms == pytest.approx(reference.grad_norms, abs=1e-5, rel=1e-5)


def test_losses_and_gradient_norms_are_those_of_the_golden_file(
    reference: Trained, pytestconfig: pytest.Config
) -> None:
    if pytestconfig.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps({"origin": ORIGIN, **asdict(reference)}, indent=1) + "\n")
    golden = read_json(GOLDEN)
    # Kernels differ between processors in the last bits, and eight steps carry that on.
    assert reference.losses == pytest.approx(golden["losses"], abs=1e-4)
    assert reference.grad_norms == pytest.approx(golden["grad_norms"], rel=1e-3)


def grown(checkpoint: Path) -> Any:
    """Load a checkpoint with the rows that its tokenizer asks for, by hand."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    table = model.model.embed_tokens.weight.data
    rows = torch.cat([table, table.mean(dim=0, keepdim=True).repeat(5, 1)])
    model.model.embed_tokens.weight = model.lm_head.weight = torch.nn.Parameter(rows)
    return model


def test_the_first_loss_is_the_mean_over_the_last_answers_of_each_sample_alone(
    tiny_yuan2: Path, conversations_file: Path, tmp_path: Path
) -> None:
    changes = {"per_device_train_batch_size": 4, "max_steps": 1, "last_response_loss": True}
    flags = main_flags(tiny_yuan2, conversations_file, tmp_path, **changes)
    rows = run_ranks(first_batch, flags, world_size=1)[0]
    model, total, num_tokens = grown(tiny_yuan2), 0.0, 0
    for row in rows:
        ids, answer = torch.tensor([row["input_ids"]]), row["labels"]
        assert row["input_ids"][-len(answer) :] == answer, "the last answer is the end of the sample"
        logs = model(ids).logits[0].log_softmax(-1)
        total -= sum(float(logs[place - 1, ids[0, place]].detach()) for place in range(-len(answer), 0))
        num_tokens += len(answer)
    assert len({len(row["input_ids"]) for row in rows}) > 1, "the lengths must be ragged for this to prove anything"
    again = [*flags, "--output_dir", str(tmp_path / "again")]
    found = run_ranks(train_and_log, again, world_size=1)[0].losses[0]
    assert found == pytest.approx(total / num_tokens, abs=1e-5)


TALK = [
    {"from": role, "value": text}
    for role, text in (("human", "q one"), ("gpt", "first answer"), ("human", "q two"), ("gpt", "second answer"))
]
# What is supervised, joined over a sample; the space is SentencePiece's own in front of text behind `<sep>`.
SUPERVISED = {
    "last_response_loss": ["second answer<eod>"],
    "split_example_loss": ["first answer<eod>", "second answer<eod>"],
    "efficient_loss": ["first answer second answer<eod>"],
}


@pytest.mark.parametrize("mode", SUPERVISED)
def test_a_loss_mode_supervises_the_answers_it_names_and_nothing_else(
    mode: str, tiny_yuan2: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"conversations": TALK}]))
    flags = main_flags(tiny_yuan2, data, tmp_path / "out", per_device_train_batch_size=2, max_steps=1, **{mode: True})
    rows = run_ranks(first_batch, flags, world_size=1)[0]
    tokenizer = family_named("yuan2").load_tokenizer(tiny_yuan2)
    assert sorted(tokenizer.decode(row["labels"]) for row in rows) == SUPERVISED[mode]


@pytest.fixture(scope="module")
def exported(tiny_yuan2: Path, conversations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under ZeRO-3 that learns nothing, so that what comes out is what went in."""
    folder = tmp_path_factory.mktemp("exported")
    flags = main_flags(tiny_yuan2, conversations_file, folder, max_steps=1, learning_rate=0, **ZERO3)
    run_ranks(train_and_log, flags, world_size=2)
    return folder


def test_the_export_has_the_official_names_and_the_weights_that_went_in(exported: Path, tiny_yuan2: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_yuan2, exported))
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before if name != TABLE)
    rows = len(before[TABLE])
    assert torch.equal(after[TABLE][:rows], before[TABLE])
    assert after[TABLE].shape[0] == rows + 5
    mean = before[TABLE].double().mean(dim=0).expand(5, -1)
    torch.testing.assert_close(after[TABLE][rows:].double(), mean, atol=1e-7, rtol=0)


def test_the_export_is_loaded_by_the_auto_classes_with_no_key_missing_or_left_over(exported: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True)
    model, found = loaded
    wanted = ("missing_keys", "unexpected_keys", "mismatched_keys")
    assert {name: found[name] for name in wanted} == {name: set() for name in wanted}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert type(AutoTokenizer.from_pretrained(exported)).__name__ == "Yuan2Tokenizer"


def test_the_exported_config_is_the_official_one_without_the_code(exported: Path, tiny_yuan2: Path) -> None:
    before, after = (read_json(folder / "config.json") for folder in (tiny_yuan2, exported))
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed <= {"auto_map", "tokenizer_class", "torch_dtype", "vocab_size", "dtype", "use_cache"}
    assert after["vocab_size"] == before["vocab_size"] + 5
    assert after["architectures"] == ["YuanForCausalLM"]


def test_a_table_with_rows_for_every_token_is_not_resized(
    tiny_yuan2: Path, conversations_file: Path, tmp_path: Path
) -> None:
    # As the published ones: 135040 rows for 134958 tokens.
    roomy = tmp_path / "roomy"
    shutil.copytree(tiny_yuan2, roomy)
    weights = load_file(roomy / "model.safetensors")
    weights[TABLE] = torch.cat([weights[TABLE], torch.ones(87, weights[TABLE].shape[1])])
    save_file(weights, roomy / "model.safetensors", metadata={"format": "pt"})
    config = read_json(roomy / "config.json")
    (roomy / "config.json").write_text(json.dumps(config | {"vocab_size": len(weights[TABLE])}))
    flags = main_flags(roomy, conversations_file, tmp_path / "out", max_steps=1, learning_rate=0)
    run_ranks(train_and_log, flags, world_size=1)
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[TABLE], weights[TABLE])


def test_sequences_beyond_the_context_scale_the_positions_and_say_so(
    tiny_yuan2: Path, conversations_file: Path, tmp_path: Path
) -> None:
    flags = main_flags(tiny_yuan2, conversations_file, tmp_path, max_steps=1, model_max_length=4097)
    ended = run_main(flags, tmp_path)
    assert ended.code == 0, ended.said
    assert read_json(tmp_path / "config.json")["rope_parameters"]["factor"] == 3.0  # ceil(4097 / 2048)
    told = "rope_scaling: None -> {'rope_type': 'linear', 'factor': 3.0}, to reach --model_max_length"
    assert told in ended.said.splitlines()


def test_a_head_stored_with_values_of_its_own_is_untied_trained_and_exported(
    tiny_yuan2: Path, conversations_file: Path, tmp_path: Path
) -> None:
    untied = tmp_path / "untied"
    shutil.copytree(tiny_yuan2, untied)
    weights = load_file(untied / "model.safetensors")
    weights["lm_head.weight"] = weights[TABLE] * 2
    save_file(weights, untied / "model.safetensors", metadata={"format": "pt"})
    flags = main_flags(untied, conversations_file, tmp_path / "out", max_steps=1, learning_rate=0, **ZERO3)
    run_ranks(train_and_log, flags, world_size=2)
    after = load_file(tmp_path / "out" / "model.safetensors")
    rows = len(weights[TABLE])
    assert torch.equal(after["lm_head.weight"][:rows], weights["lm_head.weight"])
    assert read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] is False


def test_a_resumed_run_goes_on_with_the_losses_of_the_uninterrupted_one(
    tiny_yuan2: Path, conversations_file: Path, tmp_path: Path
) -> None:
    changes = {"max_steps": 4, **TWO_BY_TWO, **ZERO3}
    first, second = (main_flags(tiny_yuan2, conversations_file, tmp_path / name, **changes) for name in ("a", "b"))
    whole = run_ranks(train_and_log, [*first, "--save_strategy", "steps", "--save_steps", "2"], world_size=2)[0]
    resuming = [*second, "--resume_from_checkpoint", str(tmp_path / "a" / "checkpoint-2")]
    assert run_ranks(train_and_log, resuming, world_size=2)[0] == whole


def test_evaluation_is_the_mean_over_all_supervised_tokens(
    tiny_yuan2: Path, conversations_file: Path, tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.json"
    held_out.write_text(json.dumps(read_json(conversations_file)[:5]))
    given = {"max_steps": 1, "learning_rate": 0, "eval_data_path": held_out, "eval_strategy": "steps", "eval_steps": 1}
    found = [
        run_ranks(
            evaluate,
            main_flags(tiny_yuan2, conversations_file, tmp_path / str(size), per_device_eval_batch_size=size, **given),
            world_size=1,
        )[0]
        for size in (1, 5)
    ]
    assert found[0]["eval_num_tokens"] == found[1]["eval_num_tokens"] > 0
    assert found[0]["eval_loss"] == pytest.approx(found[1]["eval_loss"], abs=1e-5)


MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    "mixture of experts": (
        {"use_moe": True},
        {},
        65,
        "config.json: model must be a dense Yuan2, but use_moe describe a mixture of experts (Yuan2-M32)",
    ),
    "wrong head count": ({"num_attention_heads": 3}, {}, 65, "must be an even multiple of num_attention_heads"),
    "two losses": ({}, {"efficient_loss": True, "split_example_loss": True}, 64, "at most one may be given"),
    "layout of another loss": ({}, {"layout": "fastchat", "split_example_loss": True}, 64, "--efficient_loss only"),
    "unknown attention": (
        {},
        {"attn_implementation": "paged"},
        64,
        "flash_attention_2, flex_attention, but is 'paged'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_its_exit_code_and_a_line(
    name: str, tiny_yuan2: Path, conversations_file: Path, tmp_path: Path
) -> None:
    config, flags, code, told = MISTAKES[name]
    model = tmp_path / "model"
    shutil.copytree(tiny_yuan2, model)
    (model / "config.json").write_text(json.dumps(read_json(model / "config.json") | config))
    ended = run_main(main_flags(model, conversations_file, tmp_path / "out", **flags), tmp_path)
    assert ended.code == code, ended.said
    assert any(told in line for line in ended.errors), ended.said
    assert "Traceback" not in ended.said
