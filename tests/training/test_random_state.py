"""Random numbers go on where they stopped, through JSON."""

import json
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ds_sft.training.random_state import random_state, set_random_state

DRAWS: dict[str, Callable[[], list[float]]] = {
    "python": lambda: [random.random() for _ in range(700)],
    "python, normal": lambda: [random.gauss(0, 1) for _ in range(3)],
    "numpy": lambda: list(np.random.random(700)),
    "numpy, normal": lambda: list(np.random.standard_normal(3)),
    "torch": lambda: torch.rand(700).tolist(),
    "torch, normal": lambda: torch.randn(3).tolist(),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


@pytest.mark.parametrize("num_drawn_before", [0, 1])
@pytest.mark.parametrize("kind", DRAWS)
def test_draws_after_putting_back_are_the_draws_after_taking(kind: str, num_drawn_before: int) -> None:
    draw = DRAWS[kind]
    # An odd number of normal draws leaves half a pair behind, which is part of the state.
    for _ in range(num_drawn_before):
        draw()
    text = json.dumps(random_state(), allow_nan=False)
    expected = draw()
    for _ in range(3):
        draw()
    set_random_state(json.loads(text))
    assert draw() == expected


def test_taking_the_state_draws_nothing() -> None:
    expected = {kind: draw() for kind, draw in DRAWS.items()}
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    random_state()
    assert {kind: draw() for kind, draw in DRAWS.items()} == expected


def test_each_generator_has_an_entry() -> None:
    assert set(random_state()) - {"cuda"} == {"python", "numpy", "torch"}
