"""How a model is asked, as far as it can be judged without torch: limits, chance, and room for the prompt."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ds_sft.data.draft import Encoder
from ds_sft.data.questions import prompt_options
from ds_sft.errors import ConfigError, raise_together
from ds_sft.tools.named_model import NamedModel

DtypeName = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Asking:
    """How answers are written.

    Args:
        max_new_tokens: Most tokens of one answer, its end included.
        temperature: 0 takes the likeliest token each time.
        top_p: With a temperature: draw from the likeliest tokens that together have this probability.
        seed: Of what is drawn.
        max_tokens: Most tokens of one sequence; None for what the model was trained with.
        device: Where the model runs; None for a GPU where there is one.
        dtype: Number format; None for bf16 on a GPU and fp32 on a CPU.
        base: The model of an adapter, where it has moved.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int | None = None
    device: str | None = None
    dtype: DtypeName | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        raise_together(list(self._faults()))

    def _faults(self) -> Iterator[ConfigError]:
        if not math.isfinite(self.temperature) or self.temperature < 0:
            yield ConfigError(f"temperature: must be a number from 0 on, but is {self.temperature}; 0.7 is usual")
        if not 0 < self.top_p <= 1:
            yield ConfigError(f"top_p: must be above 0 and at most 1, but is {self.top_p}; 0.9 is usual")


def encoder_of(named: NamedModel, asking: Asking) -> Encoder:
    """Give what turns a question into a prompt of this model that leaves room for the answer.

    Args:
        named: The model.
        asking: Limits.

    Returns:
        The encoder.

    Raises:
        ConfigError: When nothing is left for the prompt.
    """
    options = prompt_options(
        named.family,
        max_tokens=asking.max_tokens or named.max_tokens,
        max_new_tokens=asking.max_new_tokens,
        layout=named.layout,
    )
    return Encoder(named.family, named.tokenizer, options)
