"""Rows of an embedding that train while the table around them is frozen: those of the tokens that a run adds.

peft has such a layer too (`trainable_token_indices`), and the files are in its form, so that plain peft reads them. Its
layer, as of 0.21.2, is not used in training: under ZeRO-3 it asks for a CUDA device even on a CPU
(tuners/trainable_tokens/layer.py), it copies the whole table at every forward, and behind a head it makes the gradient
of the whole table to keep ten rows of it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from ds_sft.zero.gather import gathered

ROWS = "rows"


class NewRows(nn.Module):
    """A frozen embedding or head some of whose rows are in a small table of their own.

    Args:
        base: The frozen module.
        rows: Shape [R, H].
        token_ids: Which rows they are.
    """

    def __init__(self, base: nn.Module, rows: nn.Parameter, token_ids: Sequence[int]) -> None:
        super().__init__()
        self.base = base
        self.rows = rows
        self.ids = tuple(token_ids)
        self.token_ids: torch.Tensor
        self.register_buffer("token_ids", torch.tensor(self.ids, device=rows.device), persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table, shape [V, H]; transformers asks an embedding for its dtype and device this way."""
        return table_of(self.base)


class NewRowsEmbedding(NewRows):
    """An embedding some of whose rows are looked up in a small table of their own.

    Args:
        base: The frozen embedding.
        rows: Shape [R, H].
        token_ids: Which rows they are, ascending.
    """

    @property
    def padding_idx(self) -> int | None:
        """Of the frozen embedding."""
        index: int | None = self.base.padding_idx  # type: ignore[assignment]  # nn.Embedding has it
        return index

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Look tokens up.

        Args:
            input_ids: Shape [B, T].

        Returns:
            Shape [B, T, H].
        """
        states: torch.Tensor = self.base(input_ids)
        place = torch.searchsorted(self.token_ids, input_ids).clamp(max=len(self.token_ids) - 1)
        is_new = self.token_ids[place] == input_ids
        own = functional.embedding(place, self.rows).to(states.dtype)
        return torch.where(is_new[..., None], own, states)


class NewRowsHead(NewRows):
    """An output head some of whose rows are in a small table of their own.

    Args:
        base: The frozen head.
        rows: Shape [R, H].
        token_ids: Which rows they are, in any order.
    """

    def forward(
        self, states: torch.Tensor, target_ids: torch.Tensor | None = None, *, label_smoothing: float = 0.0
    ) -> Any:
        """Score all tokens, or compare the states with targets as the frozen head does.

        Args:
            states: Shape [..., H]; [targets, H] with `target_ids`.
            target_ids: What each state should foretell, shape [targets]; for a head that gives losses.
            label_smoothing: Share of a target's weight that is spread over the vocabulary.

        Returns:
            Scores [..., V]; with `target_ids` what the frozen head gives.
        """
        if target_ids is not None:
            return self.base(states, target_ids, label_smoothing=label_smoothing, own=(self.rows, self.token_ids))
        scores: torch.Tensor = self.base(states)
        own = functional.linear(states, self.rows.to(states.dtype)).to(scores.dtype)
        # All scores of a batch are large. Behind a gradient they stay as they are, because a hook may have made them a
        # view; a copy is made there alone.
        write = scores.index_copy if scores.requires_grad else scores.index_copy_
        return write(-1, self.token_ids, own)


def train_new_rows(model: PreTrainedModel, token_ids: Sequence[int], *, dtype: torch.dtype) -> None:
    """Let the rows of some tokens train, in every embedding that shares the input's table and in the head.

    Args:
        model: All of its embeddings are frozen; partitioned by ZeRO-3 or not.
        token_ids: Of the tokens, ascending.
        dtype: Of the new parameters.
    """
    table, head = table_of(model.get_input_embeddings()), model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    rows = _rows(table, token_ids, dtype)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.Embedding) and module.weight is table:
            _put(model, path, NewRowsEmbedding(module, rows, token_ids))
        elif module is head and table_of(head) is table:
            _put(model, path, NewRowsHead(head, rows, token_ids))
        elif module is head:
            # The other way round, as peft's files must have them: see `Adapters`.
            ids = token_ids[::-1]
            _put(model, path, NewRowsHead(head, _rows(table_of(head), ids, dtype), ids))


def new_rows_of(model: nn.Module) -> Iterator[tuple[str, NewRows]]:
    """Give the modules that have new rows.

    Args:
        model: Any.

    Yields:
        Path and module.
    """
    for path, module in model.named_modules():
        if isinstance(module, NewRows):
            yield path, module


def table_of(module: nn.Module) -> torch.Tensor:
    """Give the table of an embedding or a head.

    Args:
        module: It.

    Returns:
        Shape [V, H]; empty where ZeRO-3 holds it elsewhere.
    """
    weight = module.weight
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"an embedding's weight must be a tensor, but is a {type(weight).__name__}")
    return weight


def _rows(table: torch.Tensor, token_ids: Sequence[int], dtype: torch.dtype) -> nn.Parameter:
    with gathered([table]), torch.no_grad():
        return nn.Parameter(table.detach()[list(token_ids)].to(dtype, copy=True))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
