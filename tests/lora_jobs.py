"""What ranks do in the tests of adapters, and the checkpoints that those tests need."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import ds_sft  # noqa: F401  # makes the auto classes know Yuan2
from ds_sft.train import train
from ds_sft.zero.gather import stream
from tests.jobs import read_json

TABLES = ("shared.weight", "lm_head.weight")
_WRAPPERS = re.compile(r"^base_model\.model\.|\.base(?:_layer)?(?=\.)")


@dataclass(frozen=True)
class Adapted:
    """What a run with adapters leaves.

    Args:
        losses: Of every step.
        changed: Weights of the frozen model that are not, bit for bit, what its file holds.
        scores: Of some tokens, by the adapted model.
    """

    losses: list[float]
    changed: list[str]
    scores: list[float]


def with_rows_in_reserve(checkpoint: Path, into: Path, *, num_rows: int) -> Path:
    """Give both tables of a T5 rows that no token has yet, as the published ones have them."""
    shutil.copytree(checkpoint, into)
    weights = load_file(into / "model.safetensors")
    for name in TABLES:
        generator = torch.Generator().manual_seed(len(name))
        more = torch.randn(num_rows - len(weights[name]), weights[name].shape[1], generator=generator) * 0.05
        weights[name] = torch.cat([weights[name], more])
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    _change_config(into, vocab_size=num_rows)
    return into


def with_tied_head(checkpoint: Path, into: Path) -> Path:
    """Let a T5 score with its input table, as the first T5 does."""
    shutil.copytree(checkpoint, into)
    weights = load_file(into / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    _change_config(into, tie_word_embeddings=True, scale_decoder_outputs=True)
    return into


def train_adapters(flags: list[str], tokens: list[int]) -> Adapted:
    """Run the main job; every rank must call it, and rank zero's answer counts."""
    trainer = train(flags)
    assert trainer is not None
    bare: Any = trainer.accelerator.unwrap_model(trainer.model)
    bare.eval()
    frozen = {name: weight for name, weight in bare.named_parameters() if not weight.requires_grad}
    stored = load_file(Path(flags[flags.index("--model_name_or_path") + 1]) / "model.safetensors")
    changed = []
    for name, whole in stream(frozen):
        own = stored[_WRAPPERS.sub("", name)]
        # A table that was grown has more rows than its file.
        if not torch.equal(whole[: len(own)].float(), own):
            changed.append(name)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return Adapted(losses, changed, scores_of(bare, tokens, is_pair=trainer._family.is_encoder_decoder))


@torch.no_grad()
def scores_of(model: Any, tokens: list[int], *, is_pair: bool) -> list[float]:
    """Give the logits of a sequence; of an encoder-decoder that reads it on both sides."""
    ids = torch.tensor([tokens])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logits: torch.Tensor = model(**inputs, **({"decoder_input_ids": ids} if is_pair else {}))["logits"]
    return logits.flatten().tolist()


def plain_scores(model: Path, adapter: Path | None, tokens: list[int], *, is_pair: bool) -> list[float]:
    """Give the logits by transformers and peft alone."""
    kind = AutoModelForSeq2SeqLM if is_pair else AutoModelForCausalLM
    loaded: Any = kind.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        if max(tokens) >= loaded.get_input_embeddings().num_embeddings:
            loaded.resize_token_embeddings(max(tokens) + 1, mean_resizing=False)
        loaded = PeftModel.from_pretrained(loaded, adapter)
    return scores_of(loaded.eval(), tokens, is_pair=is_pair)


def facts_of(adapter: Path) -> dict[str, Any]:
    """Give the settings of an adapter."""
    content: dict[str, Any] = read_json(adapter / "adapter_config.json")
    return content


def _change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**read_json(file), **changes}))
