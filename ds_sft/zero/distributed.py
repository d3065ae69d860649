"""Starts DeepSpeed's process group at the one moment when that works."""

import os
import socket

import torch

from ds_sft.zero.extensions import own_extensions_folder

_SINGLE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def world_size() -> int:
    """Give the number of ranks that the launcher started.

    Returns:
        At least 1.
    """
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(*, on_cpu: bool) -> None:
    """Start DeepSpeed's process group; call it before `TrainingArguments` is made.

    On a CPU transformers would start torch's own group first, DeepSpeed would then count one rank, and ZeRO-3 stops
    with "train_batch_size is not equal". Without a launcher the variables of one rank are set here, because DeepSpeed
    would look for MPI.

    Args:
        on_cpu: Whether training runs on the CPU, with gloo.
    """
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # `accelerate launch --cpu` sets it, and accelerate then leaves DeepSpeed out without a word.
        os.environ.pop("ACCELERATE_USE_CPU", None)
    # DeepSpeed unpickles what it loads; nothing of ours is loaded so, and nothing else shall be.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    if "RANK" not in os.environ:
        os.environ.update(_SINGLE_PROCESS)
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    own_extensions_folder()
    import deepspeed
    import deepspeed.ops

    if on_cpu:
        # It would be compiled at every start (78 CPU seconds), and a build that is killed leaves a lock on which
        # every later start waits for ever (pytorch issue 189245). Training does not need it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl", verbose=False)


def leave() -> None:
    """Take the process group down, so that the process ends without a warning of a leak."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
