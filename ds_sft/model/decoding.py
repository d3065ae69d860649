"""Lets a model write, token by token: greedy or by chance, one row or many, each as it would be alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from ds_sft.errors import ModelError, NumericsError

Choose = Callable[[torch.Tensor], torch.Tensor]
"""Scores [B, V] in fp32 -> ids [B]."""


@dataclass(frozen=True)
class Ends:
    """The tokens at which writing begins and ends.

    Args:
        start: What the decoder sees first; None for a model without an encoder, which goes on behind the prompt.
        end: Ends an answer.
        pad: Fills what has no token; no row ever sees it.
    """

    start: int | None
    end: int
    pad: int


@dataclass(frozen=True)
class Written:
    """An answer as the model wrote it.

    Args:
        ids: Without the token that ends it.
        is_whole: Whether it was ended by the model and not by the limit.
    """

    ids: Sequence[int]
    is_whole: bool


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, is_encoder_decoder: bool) -> Ends:
    """Give the tokens at which a model begins and ends to write.

    Args:
        model: Its config names the start, or else the padding, as training has it.
        tokenizer: Its end of a text is the end of an answer.
        is_encoder_decoder: Whether there is a start.

    Returns:
        The tokens.

    Raises:
        ModelError: When config.json names neither start nor padding.
    """
    end: Any = tokenizer.eos_token_id
    if not is_encoder_decoder:
        return Ends(None, end, end)
    start, pad = model.config.decoder_start_token_id, model.config.pad_token_id
    if pad is None:
        raise ModelError(f"config.json: pad_token_id must be a number, but is {pad}; T5's own is 0")
    return Ends(pad if start is None else start, end, pad)


def write_all(steps: Iterator[Sequence[int | None]], *, num_rows: int, end: int) -> list[Written]:
    """Collect what `write` gives.

    Args:
        steps: Of `write`.
        num_rows: Number of prompts.
        end: Ends an answer.

    Returns:
        One answer for each prompt.
    """
    ids: list[list[int]] = [[] for _ in range(num_rows)]
    for step in steps:
        for row, token in enumerate(step):
            ids[row] += [] if token is None else [token]
    return [Written(row[:-1], is_whole=True) if row[-1:] == [end] else Written(row, is_whole=False) for row in ids]


def write(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Ends,
    max_new_tokens: int,
    device: torch.device,
    choose: Choose,
    agree: Callable[[bool], bool] = lambda is_left: is_left,
) -> Iterator[list[int | None]]:
    """Answer prompts side by side; padding changes no row.

    Args:
        model: In evaluation mode; an engine, or a bare model.
        prompts: Ids of each prompt, at least one each.
        ends: Where writing begins and ends.
        max_new_tokens: Most tokens of an answer, its end included.
        device: Of the model.
        choose: Picks the next token of each row.
        agree: Takes whether a row is left and tells whether to go on; where weights are partitioned, all ranks must
            run the same number of steps.

    Yields:
        The new token of each row, after each step; None for a row that has ended.

    Raises:
        NumericsError: When a score is no number.
    """
    inputs = _first_inputs(prompts, ends, device)
    is_open = [True] * len(prompts)
    for number in range(1, max_new_tokens + 1):
        with torch.no_grad():
            outputs = model(**inputs, use_cache=True)
        chosen = choose(_finite(outputs["logits"][:, -1].float()))
        told = chosen.tolist()
        yield [token if still else None for token, still in zip(told, is_open, strict=True)]
        is_open = [still and token != ends.end for token, still in zip(told, is_open, strict=True)]
        if number == max_new_tokens or not agree(any(is_open)):
            return
        inputs = _next_inputs(inputs, outputs, chosen[:, None])


def greedy(scores: torch.Tensor) -> torch.Tensor:
    """Pick the token with the best score.

    Args:
        scores: Of the next token, shape [B, V].

    Returns:
        Ids, shape [B].
    """
    return scores.argmax(dim=-1)


def by_chance(*, temperature: float, top_p: float, seeds: Sequence[str]) -> Choose:
    """Draw tokens; each row has random numbers of its own, so that it does not matter which rows are beside it.

    Args:
        temperature: Divides the scores; above 0.
        top_p: Only the likeliest tokens are drawn that together have this probability (Holtzman 2020, "The Curious
            Case of Neural Text Degeneration").
        seeds: One for each row.

    Returns:
        What picks tokens.
    """
    draws = [Random(seed) for seed in seeds]  # noqa: S311  # no secret

    def choose(scores: torch.Tensor) -> torch.Tensor:
        kept = _likeliest((scores / temperature).double().softmax(dim=-1), top_p)
        # In the order of ids: two tokens with nearly the same score may change places in an order of scores.
        total = kept.cumsum(dim=-1)
        shares = torch.tensor([[draw.random()] for draw in draws], dtype=torch.double, device=scores.device)
        places = torch.searchsorted(total, shares * total[:, -1:], right=True)
        return places.clamp(max=total.shape[-1] - 1)[:, 0]

    return choose


def _likeliest(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Set all to zero but the likeliest that together reach a probability; those as likely as the last of them stay."""
    falling = probabilities.sort(dim=-1, descending=True).values
    before = falling.cumsum(dim=-1) - falling
    least = falling.masked_fill(before >= top_p, 1.0).amin(dim=-1, keepdim=True)
    return probabilities.masked_fill(probabilities < least, 0.0)


def _first_inputs(prompts: Sequence[Sequence[int]], ends: Ends, device: torch.device) -> dict[str, Any]:
    """Pad on the side where nothing is written: on the left where the answer follows the prompt."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), ends.pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if ends.start is None else slice(0, len(prompt))
        ids[row, place] = torch.as_tensor(prompt)
        mask[row, place] = 1
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if ends.start is None:
        # The scores of a whole prompt take more room than all else.
        return inputs | {"logits_to_keep": 1}
    return inputs | {"decoder_input_ids": torch.full((len(prompts), 1), ends.start, device=device)}


def _next_inputs(inputs: dict[str, Any], outputs: Any, new: torch.Tensor) -> dict[str, Any]:
    known, mask = {"past_key_values": outputs["past_key_values"]}, inputs["attention_mask"]
    if "logits_to_keep" in inputs:
        longer = torch.cat([mask, torch.ones_like(new)], dim=1)
        return {"input_ids": new, "attention_mask": longer, "logits_to_keep": 1, **known}
    encoded = inputs.get("encoder_outputs") or BaseModelOutput(last_hidden_state=outputs["encoder_last_hidden_state"])
    return {"encoder_outputs": encoded, "attention_mask": mask, "decoder_input_ids": new, **known}


def _finite(scores: torch.Tensor) -> torch.Tensor:
    """Refuse scores of which none is best."""
    if not bool(scores.amax(dim=-1).isfinite().all()):
        raise NumericsError(
            "model: its scores must be finite, but are not; try --dtype fp32, or restore the weights it had before"
        )
    return scores
