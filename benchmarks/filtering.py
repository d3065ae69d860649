"""Measures Yuan2's filter (one matrix product for each convolution) beside the Conv2d kernels of the official code.

Run it as `python benchmarks/filtering.py`; it writes results/filtering.json. Both compute forward and backward on the
same states and weights, in turn, after outputs and all gradients were found equal. Seconds are processor time of one
thread; the ratio is Conv2d's median over ours. In bf16 a processor without instructions for it says nothing about one
that has them (`has_bf16` in the results), nor about a GPU.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ds_sft.families.yuan2.native.filtering import Yuan2LocalizedFiltering

RESULTS = Path(__file__).parent / "results" / "filtering.json"
TOLERANCE = 1e-5
SHAPES = [(4, 256, 256), (2, 512, 1024), (1, 512, 2048)]
"""Rows, tokens and width; the last is the width of Yuan2-2B."""

Filter = Callable[[Yuan2LocalizedFiltering, torch.Tensor], torch.Tensor]


def ours(module: Yuan2LocalizedFiltering, states: torch.Tensor) -> torch.Tensor:
    """Filter as the model does.

    Args:
        module: Its weights.
        states: Shape [B, T, H].

    Returns:
        Shape [B, T, H].
    """
    filtered: torch.Tensor = module(states, is_token=None, goes_on=None, cache=None)
    return filtered


def conv2d(module: Yuan2LocalizedFiltering, states: torch.Tensor) -> torch.Tensor:
    """Filter with Conv2d over [B, H, T, 1], padded by one token in front, as the official code does.

    Args:
        module: Its weights.
        states: Shape [B, T, H].

    Returns:
        Shape [B, T, H].
    """
    image = states.transpose(1, 2).unsqueeze(-1)
    for one in (module.conv1, module.conv2):
        image = functional.conv2d(image, one.weight, one.bias, padding=(1, 0))[:, :, : states.shape[1]]
    filtered: torch.Tensor = module.output_layernorm(image.squeeze(-1).transpose(1, 2) + states)
    return filtered


def gradients(compute: Filter, module: Yuan2LocalizedFiltering, states: torch.Tensor) -> list[torch.Tensor]:
    """Give output and all gradients.

    Args:
        compute: One of the two.
        module: Its weights.
        states: Shape [B, T, H].

    Returns:
        Output, gradient of the states, gradients of the weights.
    """
    module.zero_grad()
    states = states.detach().requires_grad_()
    out = compute(module, states)
    out.square().mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return [out.detach(), *(one.grad.clone() for one in (states, *module.parameters()) if one.grad is not None)]


def largest_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Give the largest difference, as a share of the largest entry of the same tensor.

    Args:
        found: Of one way.
        expected: Of the other.

    Returns:
        The share.
    """
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


def measure(shape: tuple[int, int, int], rounds: int, dtype: torch.dtype) -> dict[str, object]:
    """Time both ways on one shape.

    Args:
        shape: Rows, tokens, width.
        rounds: How often each way is timed, after one round that is not counted.
        dtype: Of states and weights.

    Returns:
        Median seconds, their ratio and the largest error.
    """
    torch.manual_seed(0)
    module = Yuan2LocalizedFiltering(shape[2], 0)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.02)
    states = torch.randn(shape)
    error = largest_error(gradients(ours, module, states), gradients(conv2d, module, states))
    if error > TOLERANCE:
        raise SystemExit(f"the two ways must agree to {TOLERANCE}, but differ by {error}: nothing is reported")
    module, states = module.to(dtype), states.to(dtype)
    seconds: dict[str, list[float]] = {"ours": [], "conv2d": []}
    for number in range(rounds + 1):
        for name, way in (("ours", ours), ("conv2d", conv2d)):
            started = time.process_time()
            gradients(way, module, states)
            if number:
                seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [there / here for here, there in zip(seconds["ours"], seconds["conv2d"], strict=True)]
    return {
        "rows": shape[0],
        "tokens": shape[1],
        "width": shape[2],
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "ratio": round(medians["conv2d"] / medians["ours"], 2),
        "ratio_lowest": round(min(ratios), 2),
        "ratio_highest": round(max(ratios), 2),
        "largest_error": error,
    }


def _cpu_flags() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8").split() if file.is_file() else []


def main() -> None:
    """Measure every shape and write the results."""
    parser = argparse.ArgumentParser(description="Yuan2's filter beside Conv2d.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows = [measure(shape, rounds, torch.float32) for shape in SHAPES]
    rows += [measure(shape, rounds, torch.bfloat16) for shape in SHAPES[:-1]]
    for row in rows:
        print(f"{row['dtype']} {row['rows']}x{row['tokens']}x{row['width']}: {row['ratio']} times as fast as Conv2d")
    content = {
        "what": "forward and backward of Yuan2's filter, processor seconds of one thread, median",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "has_bf16": any(flag in _cpu_flags() for flag in ("avx512_bf16", "amx_bf16", "bf16")),
            "gpu": None,
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rounds": rounds,
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
