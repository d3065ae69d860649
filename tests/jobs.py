"""What the ranks of a test do; a module of its own, so that the fork server can import it."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ds_sft.config.arguments import TrainingArguments
from ds_sft.config.parse import build_training_arguments, parse
from ds_sft.contracts import IGNORE_INDEX, Family
from ds_sft.families import family_of
from ds_sft.model.folder import find_model_folder
from ds_sft.model.load import load_model
from ds_sft.model.vocab import smart_tokenizer_and_embedding_resize
from ds_sft.reporting import rank
from ds_sft.train import train
from ds_sft.zero import distributed
from ds_sft.zero.gather import full_shape, gathered, stored_tensors, stream


@dataclass(frozen=True)
class Trained:
    """What a run leaves: its log and its weights in fp32, as plain numbers."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)


def train_and_log(flags: list[str]) -> Trained:
    """Run the main job and give losses and gradient norms of every step, unrounded."""
    trainer = train(flags)
    assert trainer is not None, "this run was finished before"
    history = [row for row in trainer.state.log_history if "loss" in row]
    return Trained([row["loss"] for row in history], [row["grad_norm"] for row in history])


def is_left_alone(flags: list[str]) -> bool:
    """Run the main job and tell whether it found its run finished."""
    return train(flags) is None


def main_flags(model: Path, data: Path, output: Path, **flags: Any) -> list[str]:
    """Give the flags of a short deterministic run: AdamW at a constant rate, a line for every step, fp32, padded."""
    given = {
        "model_name_or_path": model,
        "data_path": data,
        "output_dir": output,
        "max_steps": 8,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "save_dtype": "fp32",
        "packing": False,
        "report_to": "none",
        "seed": 7,
        **flags,
    }
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def read_json(file: Path) -> Any:
    """Give the content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Grown:
    """Both embeddings of a checkpoint before and after growing, as this rank sees them, and whether they are one."""

    old_input: list[list[float]]
    old_output: list[list[float]]
    new_input: list[list[float]]
    new_output: list[list[float]]
    is_tied: bool
    is_encoder_tied: bool
    num_added: int


def grow_vocabulary(checkpoint: Path, config: Path | None, output: Path, tokens: list[str], seed: int) -> Grown:
    """Load a checkpoint as the main job does and add tokens; ranks draw different random numbers."""
    model, family, _args = _loaded(checkpoint, config, output)
    old_input, old_output = _both_embeddings(model)
    torch.manual_seed(seed + rank())
    tokenizer = family.load_tokenizer(checkpoint)
    num_added = smart_tokenizer_and_embedding_resize({}, tokens, tokenizer, model)
    new_input, new_output = _both_embeddings(model)
    return Grown(
        old_input,
        old_output,
        new_input,
        new_output,
        is_tied=model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        is_encoder_tied=model.get_encoder().embed_tokens.weight is model.get_input_embeddings().weight,
        num_added=num_added,
    )


def _both_embeddings(model: Any) -> tuple[list[list[float]], list[list[float]]]:
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with gathered(weights):
        return weights[0].detach().clone().tolist(), weights[1].detach().clone().tolist()


def _loaded(checkpoint: Path, config: Path | None, output: Path) -> tuple[Any, Family, TrainingArguments]:
    """Load a checkpoint as the main job does; the arguments must stay alive as long as ZeRO-3 is needed."""
    given = {} if config is None else {"deepspeed": config}
    settings = parse(main_flags(checkpoint, Path("unused"), output, use_cpu=True, **given))
    if config is not None:
        distributed.start(on_cpu=True)
    args = build_training_arguments(settings)
    folder = find_model_folder(str(checkpoint), cache_dir=None)
    family = family_of(folder.config, folder=folder.path)
    return load_model(folder, family=family, args=args, attn_implementation="sdpa"), family, args


def evaluate(flags: list[str]) -> dict[str, float]:
    """Run the main job and give its last evaluation."""
    trainer = train(flags)
    assert trainer is not None, "this run was finished before"
    return [row for row in trainer.state.log_history if "eval_loss" in row][-1]


def tokens_seen(flags: list[str]) -> int:
    """Run the main job and give the tokens that it has computed."""
    trainer = train(flags)
    assert trainer is not None, "this run was finished before"
    return int([row for row in trainer.state.log_history if "loss" in row][-1]["num_input_tokens_seen"])


def stream_checkpoint(
    checkpoint: Path, config: Path | None, output: Path
) -> dict[str, tuple[list[int], list[int], list[float]]]:
    """Load a checkpoint and stream it: shape as held, shape as if whole, values."""
    model, _family, _args = _loaded(checkpoint, config, output)
    shapes = {name: (list(weight.shape), list(full_shape(weight))) for name, weight in model.named_parameters()}
    streamed = {name: tensor.float().flatten().tolist() for name, tensor in stream(stored_tensors(model))}
    return {name: (*shapes[name], values) for name, values in streamed.items()}


def start_alone() -> dict[str, Any]:
    """Start the process group as a program does that no launcher started."""
    import deepspeed

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    os.environ["ACCELERATE_USE_CPU"] = "True"
    distributed.start(on_cpu=True)
    return {
        "is_initialized": torch.distributed.is_initialized(),
        "world_size": torch.distributed.get_world_size(),
        "backend": torch.distributed.get_backend(),
        "ACCELERATE_USE_CPU": os.environ.get("ACCELERATE_USE_CPU"),
        "builds_shm": deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"],
    }


def first_batch(flags: list[str]) -> list[dict[str, list[int]]]:
    """Run the main job and give the samples of its first batch, without padding."""
    trainer = train(flags)
    assert trainer is not None, "this run was finished before"
    batch = next(iter(trainer.get_train_dataloader()))
    return [
        {
            "input_ids": ids[mask.bool()].tolist(),
            "labels": labels[labels.ne(IGNORE_INDEX)].tolist(),
        }
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]


def rotary_inside_an_engine(stage: int, folder: Path) -> dict[str, Any]:
    """Put the golden Yuan2 into a bf16 engine and give the cosines of its angles, in fp32, and its weights' dtype."""
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM

    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}},
    }
    distributed.start(on_cpu=True)
    living = HfDeepSpeedConfig(config) if stage == 3 else None  # type: ignore[no-untyped-call]  # as transformers has it
    checkpoint = Path(__file__).parent / "golden" / "yuan2"
    model = Yuan2ForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    rotary = engine.module.model.rotary_emb
    cosines, _ = rotary(torch.zeros(1), torch.arange(2048)[None])
    ids = torch.arange(8)[None]
    engine.backward(engine(ids, labels=ids, use_cache=False).loss)
    engine.step()
    again, _ = rotary(torch.zeros(1), torch.arange(2048)[None])
    assert torch.equal(cosines, again), "a step must not change the angles"
    del living
    return {"cosines": cosines[0, 0].tolist(), "dtype": str(engine.module.lm_head.weight.dtype)}
