"""Flat batches under DeepSpeed: the step of each stage is that of one process, whatever each rank holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config

from ds_sft.families.yuan2.native.configuration import Yuan2Config
from tests.flat_jobs import IN_TREES, KINDS, WORLD_SIZE, batch_of, step_flat
from tests.ranks import run_ranks

T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
YUAN2 = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
NO_IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
CONFIGS: dict[str, Any] = {
    "flan_t5": T5Config.from_dict({**T5, "tie_word_embeddings": True}),
    **{name: Yuan2Config.from_dict({**YUAN2, **NO_IDS, "tie_word_embeddings": True}) for name in ("yuan2", IN_TREES)},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of both kinds with tied heads."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in made.items():
        torch.manual_seed(0)
        KINDS[kind](CONFIGS[kind]).save_pretrained(folder)
    return made


@pytest.mark.parametrize("stage", [0, 3])
def test_a_step_on_flat_batches_is_that_of_one_process(stage: int, folders: dict[str, Path]) -> None:
    stepped = run_ranks(step_flat, folders, stage, world_size=WORLD_SIZE)[0]
    for kind, folder in folders.items():
        model = KINDS[kind].from_pretrained(folder, dtype=torch.float32).train()
        batches = [batch_of("yuan2" if kind == IN_TREES else kind, rank) for rank in range(WORLD_SIZE)]
        mean = sum(model(**batch).loss for batch in batches) / sum(len(batch["targets"].ids) for batch in batches)
        names, weights = zip(*model.named_parameters(), strict=True)
        for name, weight, slope in zip(names, weights, torch.autograd.grad(mean, weights), strict=True):
            assert slope.any(), name
            torch.testing.assert_close(
                torch.tensor(stepped[kind][name]), (weight - slope).detach(), rtol=1e-5, atol=1e-6
            )
