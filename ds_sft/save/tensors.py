"""The safetensors format: the head of a file from shapes alone, and the bytes of a tensor piece by piece."""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ds_sft.errors import NumericsError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""What weights may be written in, by the words of the flags."""
_WORDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
_PIECE = 1 << 22
"""Numbers that are converted and written at a time, so that no second copy of a large table is ever made."""


def head(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Give the head of a file: its length, and where each tensor stands behind it.

    Args:
        tensors: Name -> tensor, with storage or without; only shape and dtype are read.

    Returns:
        The first bytes of the file.
    """
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + num_bytes(tensor)
        content[name] = {"dtype": _WORDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def num_bytes(tensor: torch.Tensor) -> int:
    """Give the size of a tensor in a file.

    Args:
        tensor: With storage or without.

    Returns:
        Bytes.
    """
    return tensor.numel() * tensor.element_size()


def pieces(tensor: torch.Tensor, *, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Give a tensor converted, a few million numbers at a time.

    Args:
        tensor: On any device.
        dtype: Of the pieces.

    Yields:
        Flat tensors on the CPU.
    """
    numbers = tensor.detach().reshape(-1)
    for start in range(0, numbers.numel(), _PIECE):
        yield numbers[start : start + _PIECE].to(device="cpu", dtype=dtype).contiguous()


def as_bytes(piece: torch.Tensor) -> memoryview:
    """Give the memory of a piece.

    Args:
        piece: Contiguous, on the CPU.

    Returns:
        Its bytes, not copied.
    """
    return piece.view(torch.uint8).numpy().data


def refuse_non_finite(name: str, piece: torch.Tensor) -> None:
    """Make sure that no NaN and no infinity reaches a file.

    Args:
        name: For the message.
        piece: Numbers of any dtype.

    Raises:
        NumericsError: When there is one.
    """
    if piece.is_floating_point() and not bool(torch.isfinite(piece).all()):
        raise NumericsError(
            f"{name}: must be finite numbers, but holds NaN or infinity, so it is not saved; go on from the last "
            "checkpoint with a lower --learning_rate"
        )
