"""Measures memory and time of the streamed export beside DeepSpeed's own gathering of 16-bit weights.

Run it as `python benchmarks/export.py`; it writes results/export.json. Two ranks hold a model of 450 MB under ZeRO-3
(gloo, CPU, fp32, an embedding of 63 MB) and write it in bf16: ours tensor by tensor, the peer by DeepSpeed's
consolidated state dict and transformers' save_pretrained, as transformers' Trainer does. Each way runs in fresh
processes, in turn; peaks are resident memory above the level before. Both files are read again and must hold the same
weights.
"""

import argparse
import json
import multiprocessing
import os
import platform
import socket
import statistics
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import load_file
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from ds_sft.save.export import write_weights
from ds_sft.zero import distributed

RESULTS = Path(__file__).parent / "results" / "export.json"
CHECKPOINT = "checkpoint"
WAYS = ("ours", "deepspeed")
NUM_RANKS = 2
SHAPE = {
    "vocab_size": 15_360,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 5,
    "num_attention_heads": 16,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ENGINE = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
}
MIB = 2**20


def export_on_rank(rank: int, port: int, way: str, folder: Path, answers: Any) -> None:
    """Make the model on one rank, export it and tell the peak.

    Args:
        rank: Of this process.
        port: Where the ranks meet.
        way: `ours` or `deepspeed`.
        folder: Where the first rank writes.
        answers: Queue for rank, peak in MiB and seconds.
    """
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(NUM_RANKS), LOCAL_SIZE=str(NUM_RANKS))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    distributed.start(on_cpu=True)
    engine = _engine(folder.parent / CHECKPOINT)
    torch.distributed.barrier()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    started = time.perf_counter()
    if way == "ours":
        write_weights(engine.module, into=folder, dtype=torch.bfloat16, max_shard_size="5GB", is_writer=rank == 0)
    else:
        weights = engine._zero3_consolidated_16bit_state_dict()  # noqa: SLF001  # what transformers' Trainer calls
        if rank == 0:
            weights = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
            engine.module.save_pretrained(folder, state_dict=weights)
    torch.distributed.barrier()
    answers.put((rank, (_resident("VmHWM") - before) / MIB, time.perf_counter() - started))


def _engine(checkpoint: Path) -> Any:
    living = HfDeepSpeedConfig(ENGINE)  # from_pretrained asks for it
    model: Any = Yuan2ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=ENGINE)[0]
    del living
    return engine


def _resident(field: str) -> int:
    """Give a memory figure of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def run(way: str, folder: Path) -> dict[str, float]:
    """Export once, in processes of its own.

    Args:
        way: `ours` or `deepspeed`.
        folder: Where the weights go.

    Returns:
        Peaks of both ranks in MiB, and seconds.
    """
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        context.Process(target=export_on_rank, args=(rank, port, way, folder, answers)) for rank in range(NUM_RANKS)
    ]
    for process in ranks:
        process.start()
    told = sorted(answers.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join()
    return {"rank_0_mib": told[0][1], "rank_1_mib": told[1][1], "seconds": told[0][2]}


def main() -> None:
    """Run both ways in turn and write the results."""
    parser = argparse.ArgumentParser(description="The streamed export beside DeepSpeed's gathering.")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as base:
        torch.manual_seed(0)
        Yuan2ForCausalLM(Yuan2Config(**SHAPE)).save_pretrained(Path(base) / CHECKPOINT)
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(run(way, Path(base) / way))
                print(way, {name: round(value, 1) for name, value in found[way][-1].items()})
        ours, theirs = (load_file(Path(base) / way / "model.safetensors") for way in WAYS)
    same = set(theirs) - {"lm_head.weight"} == set(ours) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    if not same:
        raise SystemExit("both ways must write the same weights, but do not: nothing is reported")
    medians = {
        way: {name: round(statistics.median(row[name] for row in rows), 1) for name in rows[0]}
        for way, rows in found.items()
    }
    content = {
        "what": "peak resident memory above the level before the export, and seconds; medians",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "gpu": None, "ranks": NUM_RANKS},
        "versions": {name: version(name) for name in ("torch", "transformers", "deepspeed")},
        "model": SHAPE,
        "largest_weight_mib": round(SHAPE["vocab_size"] * SHAPE["hidden_size"] * 4 / MIB, 1),
        "rounds": rounds,
        "medians": medians,
        "memory_ratio": round(medians["deepspeed"]["rank_0_mib"] / medians["ours"]["rank_0_mib"], 2),
        "time_ratio": round(medians["ours"]["seconds"] / medians["deepspeed"]["seconds"], 2),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content["medians"]), "memory", content["memory_ratio"], "time", content["time_ratio"])


if __name__ == "__main__":
    main()
