"""The random numbers of a rank as plain data: Python's, numpy's and torch's."""

import base64
import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Give the state of every generator that training draws from.

    Returns:
        What JSON can hold.
    """
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": {**legacy, "state": {"key": legacy["state"]["key"].tolist(), "pos": int(legacy["state"]["pos"])}},
        "torch": _text(torch.get_rng_state()),
    }
    if torch.cuda.is_available():
        state["cuda"] = _text(torch.cuda.get_rng_state())
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave.

    Args:
        state: Plain data.
    """
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    stored = state["numpy"]
    key = np.array(stored["state"]["key"], dtype=np.uint32)
    np.random.set_state({**stored, "state": {"key": key, "pos": stored["state"]["pos"]}})
    torch.set_rng_state(_numbers(state["torch"]))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(_numbers(state["cuda"]))


def _text(numbers: torch.Tensor) -> str:
    return base64.b64encode(numbers.numpy().tobytes()).decode()


def _numbers(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())
