"""What ranks do with flat batches: one step of plain SGD under an engine, whose weights tell the gradients."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.families.flan_t5.modeling import FlanT5
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from ds_sft.reporting import rank
from ds_sft.zero import distributed
from ds_sft.zero.gather import stored_tensors, stream
from tests.flat import causal, shared, tokens, with_encoder

LENGTHS = ([3, 9, 1], [7], [4, 2])
"""Documents of the first two ranks, and of a rank that has no targets."""
WORLD_SIZE = len(LENGTHS)
IN_TREES = "yuan2 in trees"
"""The documents of yuan2, whose beginnings are computed once."""
KINDS: dict[str, type[Any]] = {"flan_t5": FlanT5, "yuan2": Yuan2ForCausalLM, IN_TREES: Yuan2ForCausalLM}


def batch_of(kind: str, rank: int) -> dict[str, Any]:
    """Give the flat batch of a rank."""
    lengths = LENGTHS[rank]
    ids, labels = (tokens(lengths, vocabulary=20, seed=rank + shift) for shift in (0, 10))
    if rank == WORLD_SIZE - 1:
        labels = [torch.full_like(piece, IGNORE_INDEX) for piece in labels]
    if kind != "flan_t5":
        num_shared = [0, *(min(2, before - 1, own - 1) for before, own in pairwise(lengths))]
        ids = [torch.cat([ids[0][:num], one[num:]]) for num, one in zip(num_shared, ids, strict=True)]
        return shared(ids, labels, num_shared) if kind == IN_TREES else causal(ids, labels)
    sources = tokens([length + 2 for length in lengths], vocabulary=20, seed=rank + 20)
    return with_encoder(sources, ids, labels)


def step_flat(folders: dict[str, Path], stage: int) -> dict[str, dict[str, Any]]:
    """Give the weights of each kind behind a step at rate 1 with the mean loss of all ranks' targets."""
    distributed.start(on_cpu=True)
    return {kind: _stepped(kind, folder, stage) for kind, folder in folders.items()}


def _stepped(kind: str, folder: Path, stage: int) -> dict[str, Any]:
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
    }
    living = HfDeepSpeedConfig(config) if stage == 3 else None  # type: ignore[no-untyped-call]  # as transformers has it
    model = KINDS[kind].from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model.train(), optimizer=optimizer, config=config)
    num_targets = sum(len(batch_of(kind, other)["targets"].ids) for other in range(WORLD_SIZE))
    # An engine takes the mean over ranks.
    engine.backward(engine(**batch_of(kind, rank())).loss / num_targets * WORLD_SIZE)
    engine.step()
    del living
    return {name: tensor.float().tolist() for name, tensor in stream(stored_tensors(engine.module))}
