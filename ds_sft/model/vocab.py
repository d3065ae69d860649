"""Grows the vocabulary of a tokenizer and its model together, before the engine exists."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ds_sft.zero.gather import full_shape, gathered


def smart_tokenizer_and_embedding_resize(
    special_tokens_dict: Mapping[str, str],
    other_tokens: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
) -> int:
    """Add tokens, and rows for them in the input and (if untied) output embeddings.

    New rows are the mean of the old ones (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
    Models"), computed in fp32 and the same on every rank; old rows stay bit for bit what they were. A table is never
    made smaller: 32128 rows stay 32128 where the tokenizer needs 32110.

    Args:
        special_tokens_dict: Role -> token, for example `{"pad_token": "[PAD]"}`.
        other_tokens: Ordinary tokens, in the order of their ids; those already known are left as they are.
        tokenizer: Grown in place.
        model: Grown in place; partitioned by ZeRO-3 or not. The optimizer must not exist yet.

    Returns:
        The number of rows added.
    """
    tokenizer.add_special_tokens(dict(special_tokens_dict))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in other_tokens])
    return _grow_embeddings(model, num_rows=len(tokenizer))


def _grow_embeddings(model: PreTrainedModel, *, num_rows: int) -> int:
    """Give both embeddings at least so many rows; returns how many were added to the input embedding."""
    table = _weight(model.get_input_embeddings())
    head = _weight(model.get_output_embeddings())  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    missing = num_rows - full_shape(table)[0]
    if missing <= 0:
        return 0
    _replace(model, table, _with_mean_rows(table, missing))
    if head is not table:
        _replace(model, head, _with_mean_rows(head, num_rows - full_shape(head)[0]))
    model.config.vocab_size = num_rows
    return missing


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    if not isinstance(weight, nn.Parameter):
        raise TypeError(f"the embedding's weight must be a parameter, but is a {type(weight).__name__}")
    return weight


def _with_mean_rows(old: torch.Tensor, num_new: int) -> nn.Parameter:
    """Give a whole parameter: the old rows and below them their mean, repeated."""
    with gathered([old]), torch.no_grad():
        mean = old.detach().float().mean(dim=0, keepdim=True).to(old.dtype)
        grown = torch.cat([old.detach(), mean.expand(num_new, -1)])
    return nn.Parameter(grown, requires_grad=old.requires_grad)


def _replace(model: nn.Module, old: torch.Tensor, new: nn.Parameter) -> None:
    """Put a grown table into every module that holds the old one, so that what was tied stays tied."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter is old:
                module.register_parameter(name, new)
                if isinstance(module, nn.Embedding):
                    module.num_embeddings = new.shape[0]
                elif isinstance(module, nn.Linear):
                    module.out_features = new.shape[0]


def new_token_ids(
    special_tokens_dict: Mapping[str, str],
    other_tokens: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    num_added: int,
) -> list[int]:
    """Give the tokens that the model has not been trained on: those that were added to its tokenizer or its table.

    Args:
        special_tokens_dict: As for `smart_tokenizer_and_embedding_resize`.
        other_tokens: As for `smart_tokenizer_and_embedding_resize`.
        tokenizer: Grown.
        model: Grown.
        num_added: Rows that were added.

    Returns:
        Ids, ascending. Rows that a table has in reserve are among them, as T5's 32128 for 32100 pieces.
    """
    names = [*special_tokens_dict.values(), *other_tokens]
    ids: Any = tokenizer.convert_tokens_to_ids(names)
    num_rows = full_shape(_weight(model.get_input_embeddings()))[0]
    return sorted(
        {*(number for number in ids if number >= tokenizer.vocab_size), *range(num_rows - num_added, num_rows)}
    )
