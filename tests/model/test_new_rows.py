"""Rows of new tokens train in the frozen table's place, wherever that table is used."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration

import ds_sft.model.loss as loss_module
from ds_sft.contracts import IGNORE_INDEX
from ds_sft.families.flan_t5.modeling import UntiedT5
from ds_sft.model.loss import LossHead, losses_at, targets_of
from ds_sft.model.new_rows import NewRowsEmbedding, NewRowsHead, new_rows_of, train_new_rows

IDS = [3, 6, 7]
V, H = 9, 4


def _table(seed: int) -> torch.Tensor:
    return torch.randn(V, H, generator=torch.Generator().manual_seed(seed))


def _frozen(table: torch.Tensor) -> nn.Embedding:
    return nn.Embedding(V, H, _weight=table.clone(), _freeze=True)


def _replaced(table: torch.Tensor, rows: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The whole table with new rows in it, made without any code of the package."""
    whole = table.clone()
    for row, number in zip(rows, ids, strict=True):
        whole[number] = row
    return whole


def test_an_embedding_looks_up_as_if_the_rows_stood_in_its_table() -> None:
    base = _frozen(_table(0))
    rows = nn.Parameter(_table(1)[:3])
    tokens = torch.tensor([[0, 3, 8, 7], [6, 6, 1, 2]])
    found = NewRowsEmbedding(base, rows, IDS)(tokens)
    assert torch.equal(found, functional.embedding(tokens, _replaced(base.weight, rows.detach(), IDS)))


def test_a_head_scores_as_if_the_rows_stood_in_its_table() -> None:
    base = nn.Linear(H, V, bias=False)
    rows = nn.Parameter(_table(1)[:3])
    states = torch.randn(2, 5, H, generator=torch.Generator().manual_seed(2))
    for ids in (IDS, IDS[::-1]):
        found = NewRowsHead(base, rows, ids)(states)
        expected = states @ _replaced(base.weight.detach(), rows.detach(), ids).T
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("trains", [False, True])
def test_scores_are_copied_behind_a_gradient_alone(trains: bool) -> None:
    base, given = nn.Linear(H, V, bias=False).requires_grad_(False), list[torch.Tensor]()
    base.register_forward_hook(lambda _head, _states, scores: given.append(scores))
    scores = NewRowsHead(base, nn.Parameter(_table(1)[:3]), IDS)(_table(2).requires_grad_(trains))
    assert (scores.data_ptr() == given[0].data_ptr()) == (not trains)


def test_gradients_of_the_rows_are_those_of_the_whole_table() -> None:
    table = _table(0)
    tokens, targets = torch.tensor([[3, 1, 7, 7]]), torch.tensor([6, 3, 0, 7])
    whole = _replaced(table, _table(1)[:3], IDS).requires_grad_()
    loss = functional.cross_entropy((functional.embedding(tokens, whole) @ whole.T)[0], targets)
    (expected,) = torch.autograd.grad(loss, whole)
    rows = nn.Parameter(_table(1)[:3].clone())
    head = nn.Linear(H, V, bias=False)
    head.weight = nn.Parameter(table.clone(), requires_grad=False)
    states = NewRowsEmbedding(_frozen(table), rows, IDS)(tokens)
    loss = functional.cross_entropy(NewRowsHead(head, rows, IDS)(states)[0], targets)
    (found,) = torch.autograd.grad(loss, rows)
    torch.testing.assert_close(found, expected[IDS])


def _model(kind: type[T5ForConditionalGeneration]) -> T5ForConditionalGeneration:
    config = T5Config(vocab_size=V, d_model=H, d_kv=2, d_ff=4, num_layers=1, num_heads=2)
    return kind(config).requires_grad_(requires_grad=False)


def test_a_tied_model_has_one_set_of_rows_in_all_four_places() -> None:
    model = _model(T5ForConditionalGeneration)
    train_new_rows(model, IDS, dtype=torch.float32)
    places = dict(new_rows_of(model))
    assert set(places) == {"shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"}
    assert len({id(place.rows) for place in places.values()}) == 1
    assert torch.equal(places["shared"].rows, places["shared"].weight[IDS])


def test_an_untied_head_has_rows_of_its_own() -> None:
    model = _model(UntiedT5)
    train_new_rows(model, IDS, dtype=torch.float32)
    places = dict(new_rows_of(model))
    assert len({id(place.rows) for place in places.values()}) == 2
    assert torch.equal(places["lm_head"].rows, places["lm_head"].weight[IDS[::-1]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_over_new_rows_and_their_gradients_are_those_of_the_whole_table(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two states at a time: the gradient of the rows is a sum over chunks.
    monkeypatch.setitem(loss_module._CHUNK_BYTES, "cpu", 2 * V * 4)
    table, first = _table(0), torch.randn(1, 5, H, generator=torch.Generator().manual_seed(3))
    labels, ids = torch.tensor([[6, 3, IGNORE_INDEX, 0, 7]]), IDS[::-1]
    whole, states = _replaced(table, _table(1)[:3], ids).requires_grad_(), first.clone().requires_grad_()
    expected = functional.cross_entropy(
        (states @ whole.T)[0], labels[0], reduction="sum", ignore_index=IGNORE_INDEX, label_smoothing=smoothing
    )
    wanted = torch.autograd.grad(expected, (whole, states))
    frozen = LossHead(H, V)
    frozen.weight = nn.Parameter(table.clone(), requires_grad=False)
    head, again = NewRowsHead(frozen, nn.Parameter(_table(1)[:3].clone()), ids), first.clone().requires_grad_()
    found = losses_at(targets_of(labels, label_smoothing=smoothing), states=again, head=head).loss
    assert found is not None
    torch.testing.assert_close(found, expected)
    rows, slopes = torch.autograd.grad(found, (head.rows, again))
    torch.testing.assert_close(rows, wanted[0][ids])
    torch.testing.assert_close(slopes, wanted[1])
