"""Holds the memory that `ds-sft plan` foretells against what training takes.

Run it as `python -m benchmarks.plan_memory`; it writes results/plan_memory.json. Models of 50 to 60 million random
weights train two steps in fp32 by the main job, in fresh processes, under ZeRO-2 and ZeRO-3, on one rank and on two
(gloo), with and without gradient checkpointing. The peak is resident memory above the level right before the model is
loaded; glibc gives freed memory back at once.
"""

import json
import multiprocessing
import os
import platform
import socket
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401  # its libraries are no memory of training
import numpy as np
import torch
from transformers import AutoConfig

import ds_sft.train as main_job
from ds_sft.data.packing import count_micro_batches
from ds_sft.families import family_named
from ds_sft.tools.inputs import read_inputs
from ds_sft.tools.plan.engine import engine_of as read_engine
from ds_sft.tools.plan.memory import memory_of
from ds_sft.tools.plan.states import Load
from ds_sft.tools.samples import take_samples
from ds_sft.training.trainer import SftTrainer

MIB = 2**20
RESULTS = Path(__file__).parent / "results" / "plan_memory.json"
NUM_TOKENS = 1536
NUM_RECORDS = 60
MOST_TOKENS = 512
_DIVIDES_WEIGHTS = 3
SHAPES: Mapping[str, Mapping[str, int]] = {
    "yuan2": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "num_attention_heads": 8,
    },
    "flan_t5": {
        "vocab_size": 8192,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 1024,
        "num_layers": 8,
        "num_decoder_layers": 1,
        "num_heads": 8,
    },
}
# Freed memory is no part of the peak, and small machines must not share it among arenas.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True)
class Case:
    """What is trained.

    Args:
        family: Its name.
        stage: Of ZeRO.
        ranks: How many.
        is_checkpointing: Whether layers are computed again in the backward pass.
        accumulation: Micro-batches of a step.
    """

    family: str
    stage: int
    ranks: int
    is_checkpointing: bool
    accumulation: int = 1


@dataclass(frozen=True)
class Lengths:
    """Tokens of all samples, and the micro-batches that they fill.

    Args:
        sources: Of each sample; empty without an encoder.
        targets: Of each sample.
        supervised: Of all samples together.
        num_batches: Micro-batches of an epoch.
    """

    sources: list[int]
    targets: list[int]
    supervised: int
    num_batches: int


def make_inputs(family_name: str, folder: Path) -> list[str]:
    """Write a model and conversations.

    Args:
        family_name: Of the model.
        folder: For both.

    Returns:
        The flags that name them.
    """
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdefghij"), size=4)) for _ in range(400)]
    records = [
        {"conversations": [{"from": role, "value": " ".join(generator.choice(words, size=60))} for role in roles]}
        for roles in [("human", "gpt")] * NUM_RECORDS
    ]
    data = folder / "data.json"
    data.write_text(json.dumps(records), encoding="utf-8")
    model = folder / "model"
    family = family_named(family_name)
    family.write_tiny_checkpoint(model, words)
    content = json.loads((model / "config.json").read_text()) | SHAPES[family_name]
    (model / "config.json").write_text(json.dumps(content), encoding="utf-8")
    kind = family.model_class(content, frozenset({"lm_head.weight"}))
    torch.manual_seed(0)
    made: Any = kind(AutoConfig.from_pretrained(model))
    made.save_pretrained(model)
    (model / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return ["--model_name_or_path", str(model), "--data_path", str(data)]


def train_on_rank(case: Case, rank: int, port: int, flags: list[str], answers: Any) -> None:
    """Train by the main job and tell the peak.

    Args:
        case: What.
        rank: Of this process.
        port: Where ranks meet.
        flags: Of the main job.
        answers: Queue for the peak in bytes.
    """
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(case.ranks), LOCAL_SIZE=str(case.ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    found: dict[str, float] = {}
    load, run = main_job.model_of, SftTrainer.train

    @wraps(load)
    def noted_load(*args: Any, **kwargs: Any) -> Any:
        found["before"] = _resident("VmRSS")
        made = load(*args, **kwargs)
        # Loading has a peak of its own, and is not what is foretold.
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return made

    @wraps(run)
    def noted_run(*args: Any, **kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        found["peak"] = _resident("VmHWM")
        return result

    main_job.model_of, SftTrainer.train = noted_load, noted_run  # type: ignore[method-assign]
    main_job.train(flags)
    answers.put(found["peak"] - found["before"])


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith(f"{field}:"))


def engine_of(case: Case) -> dict[str, Any]:
    """Give a DeepSpeed config, with buckets that matter at this size."""
    zero: dict[str, Any] = {"stage": case.stage, "overlap_comm": True, "contiguous_gradients": True}
    zero |= {"reduce_bucket_size": 5_000_000}
    if case.stage == _DIVIDES_WEIGHTS:
        zero |= {"stage3_max_live_parameters": 10_000_000, "stage3_max_reuse_distance": 10_000_000}
        zero |= {"stage3_prefetch_bucket_size": 1_000_000, "stage3_param_persistence_threshold": 5120}
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": zero,
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True}},
    }


def flags_of(case: Case, inputs: list[str], folder: Path) -> list[str]:
    """Give the flags of the main job."""
    engine = folder / f"z{case.stage}.json"
    engine.write_text(json.dumps(engine_of(case)))
    flags = {
        "output_dir": Path(tempfile.mkdtemp(dir=folder)),
        "deepspeed": engine,
        "max_steps": 2,
        "use_cpu": True,
        "tokens_per_batch": NUM_TOKENS,
        "target_tokens_per_batch": NUM_TOKENS,
        "model_max_length": MOST_TOKENS,
        "gradient_checkpointing": case.is_checkpointing,
        "gradient_accumulation_steps": case.accumulation,
        "save_strategy": "no",
        "report_to": "none",
        "learning_rate": 1e-4,
    }
    return [*inputs, *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]


def measured_peak(case: Case, inputs: list[str], folder: Path) -> float:
    """Train in fresh processes.

    Args:
        case: What.
        inputs: Flags of model and data.
        folder: For what the run writes.

    Returns:
        Bytes of the rank with the highest peak.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = flags_of(case, inputs, folder)
    ranks = [
        context.Process(target=train_on_rank, args=(case, rank, port, flags, answers)) for rank in range(case.ranks)
    ]
    for one in ranks:
        one.start()
    peaks: list[float] = [answers.get(timeout=900) for _ in ranks]
    for one in ranks:
        one.join()
    return max(peaks)


def foretold_peak(case: Case, config: Mapping[str, Any], lengths: Lengths) -> float:
    """Ask the plan.

    Args:
        case: What is trained.
        config: Of the model.
        lengths: Of the samples.

    Returns:
        Bytes.
    """
    shape = family_named(case.family).shape_of(config)
    sources, targets, supervised, num_batches = (
        lengths.sources,
        lengths.targets,
        lengths.supervised,
        lengths.num_batches,
    )
    load = Load(
        source_tokens=sum(sources) // num_batches,
        target_tokens=sum(targets) // num_batches,
        supervised_tokens=supervised // num_batches,
        longest=max(sources or targets),
        accumulation=case.accumulation,
        is_checkpointing=case.is_checkpointing,
        computes="fp32",
    )
    engine = read_engine(engine_of(case), width=shape.width, path=Path("engine"))
    found = memory_of(shape, load, adapters=None, engine=engine, num_ranks=case.ranks, device="cpu")
    return found.peak


def lengths_of(folder: Path) -> Lengths:
    """Tokenise the conversations as the main job does.

    Args:
        folder: Of `make_inputs`.

    Returns:
        What a micro-batch holds on average.
    """
    flags = ["--model_name_or_path", str(folder / "model"), "--data_path", str(folder / "data.json")]
    inputs = read_inputs([*flags, "--model_max_length", str(MOST_TOKENS)], verb="preview")
    samples = list(take_samples(inputs, num=NUM_RECORDS, counters=Counter()))
    sides = {
        side: [sum(piece.num_tokens for piece in sample.sides[side]) for sample in samples] for side in samples[0].sides
    }
    budgets = (NUM_TOKENS,) * len(sides)
    num = count_micro_batches(np.array(list(sides.values())), budgets, multiple_of=2)
    return Lengths(sides.get("source", []), sides["target"], sum(sample.num_trained for sample in samples), num)


def main() -> None:
    """Measure all cases, and write the figures and what was foretold after each of them."""
    os.environ.update(MEMORY, OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", HF_HUB_OFFLINE="1")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as there:
        for family in SHAPES:
            folder = Path(there) / family
            folder.mkdir()
            inputs = make_inputs(family, folder)
            config, lengths = json.loads((folder / "model" / "config.json").read_text()), lengths_of(folder)
            for case in cases_of(family):
                peak = measured_peak(case, inputs, folder)
                rows.append(row_of(case, measured=peak, foretold=foretold_peak(case, config, lengths)))
                print(rows[-1], flush=True)
                write_results(rows)


def row_of(case: Case, *, measured: float, foretold: float) -> dict[str, Any]:
    """Give a row of the results.

    Args:
        case: What was trained.
        measured: Bytes.
        foretold: Bytes.

    Returns:
        Plain data; the error is a share of what was measured.
    """
    sizes = {"measured_mib": round(measured / MIB), "planned_mib": round(foretold / MIB)}
    return {**asdict(case), **sizes, "error": round(foretold / measured - 1, 4)}


def write_results(rows: list[dict[str, Any]]) -> None:
    """Write rows, and where they were measured.

    Args:
        rows: As `row_of` gives them.
    """
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
        "tokens_per_batch": NUM_TOKENS,
        "shapes": SHAPES,
    }
    RESULTS.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def cases_of(family: str) -> list[Case]:
    """Give the cases of a family.

    Args:
        family: Its name.

    Returns:
        Every stage, number of ranks and way to keep activations.
    """
    return [Case(family, *how) for how in product((2, 3), (1, 2), (False, True))]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
