"""The loss against the formula, written out in Python numbers, and against torch's own on whole scores."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.model import loss
from ds_sft.model.loss import LossHead, TargetLosses, Targets, losses_at, targets_of, token_mean_loss

SCORES = [[[0.5, -1.0, 2.0], [3.0, 0.0, -3.0]], [[1.0, 1.0, 1.0], [-2.0, 4.0, 0.25]]]
LABELS = [[2, 1], [0, IGNORE_INDEX]]
scores, labels = torch.tensor(SCORES), torch.tensor(LABELS)
ROWS, WIDTH, VOCABULARY = 11, 6, 29
SMOOTHINGS = [0.0, 0.1, 1.0]
CHUNKS = {"a chunk for each row": 1, "chunks of two rows": 2, "uneven chunks": 5, "one chunk": 11}


def loss_of(scores: list[float], label: int, smoothing: float) -> float:
    """Give -sum of q log p with q = (1 - smoothing) at the label plus smoothing / V everywhere; 0 where ignored."""
    if label == IGNORE_INDEX:
        return 0.0
    log_total = math.log(sum(math.exp(score) for score in scores))
    log_p = [score - log_total for score in scores]
    return -(1 - smoothing) * log_p[label] - smoothing * sum(log_p) / len(scores)


def expected(smoothing: float) -> list[float]:
    pairs = (
        (row, label) for rows, some in zip(SCORES, LABELS, strict=True) for row, label in zip(rows, some, strict=True)
    )
    return [loss_of(row, label, smoothing) for row, label in pairs if label != IGNORE_INDEX]


def head_of(weight: torch.Tensor) -> LossHead:
    head = LossHead(weight.shape[1], weight.shape[0])
    head.weight = nn.Parameter(weight)
    return head


def found(smoothing: float = 0.0) -> TargetLosses:
    """Give the losses of a head that lets states through as scores."""
    return losses_at(targets_of(labels, label_smoothing=smoothing), states=scores, head=head_of(torch.eye(3)))


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States [2, 8, H] and a head's weight in fp64, and labels of which five are ignored."""
    random = torch.Generator().manual_seed(3)
    states = torch.randn(2, 8, WIDTH, generator=random, dtype=torch.double)
    weight = torch.randn(VOCABULARY, WIDTH, generator=random, dtype=torch.double)
    targets = torch.randint(VOCABULARY, (2, 8), generator=random)
    targets[0, [0, 1, 5]] = targets[1, [6, 7]] = IGNORE_INDEX
    return states, weight, targets


def hold(rows: int, monkeypatch: pytest.MonkeyPatch, itemsize: int = 8) -> None:
    """Let a chunk have so many rows of the case at most."""
    monkeypatch.setitem(loss._CHUNK_BYTES, "cpu", rows * VOCABULARY * itemsize)


def slopes_of(total: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_every_target_has_the_loss_of_the_formula(smoothing: float) -> None:
    torch.testing.assert_close(found(smoothing).target_losses, torch.tensor(expected(smoothing)))


@pytest.mark.parametrize("number", [None, 12, torch.tensor(12)])
def test_the_sum_is_divided_by_the_number_that_is_given_or_by_that_of_the_targets(
    number: int | torch.Tensor | None,
) -> None:
    mean = token_mean_loss(found(), labels, number)
    assert mean.item() == pytest.approx(sum(expected(0.0)) / (3 if number is None else 12), rel=1e-6)


def test_micro_batches_add_up_to_the_loss_of_the_whole_batch() -> None:
    head = head_of(torch.eye(3))
    parts = [
        token_mean_loss(losses_at(targets_of(labels[[row]]), states=scores[[row]], head=head), labels[[row]], 3)
        for row in range(2)
    ]
    assert sum(part.item() for part in parts) == pytest.approx(token_mean_loss(found(), labels).item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_loss_and_gradients_are_those_of_whole_scores(
    chunk: str, smoothing: float, case: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, weight, targets = case
    hold(CHUNKS[chunk], monkeypatch)
    head = head_of(weight)
    states.requires_grad_()
    whole = functional.cross_entropy(
        functional.linear(states, head.weight).flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=smoothing,
    )
    total = losses_at(targets_of(targets, label_smoothing=smoothing), states=states, head=head).loss
    assert total is not None
    torch.testing.assert_close(total, whole, rtol=1e-13, atol=0)
    # As gradient accumulation and ranks do, the loss is scaled behind.
    wanted = slopes_of(whole * 0.25, states, head.weight)
    torch.testing.assert_close(slopes_of(total * 0.25, states, head.weight), wanted, rtol=1e-12, atol=1e-14)


def test_a_batch_without_targets_has_the_loss_zero_and_gradients_of_zeros(case: tuple[torch.Tensor, ...]) -> None:
    states, weight, targets = case
    head = head_of(weight)
    states.requires_grad_()
    none = torch.full_like(targets, IGNORE_INDEX)
    mean = token_mean_loss(losses_at(targets_of(none), states=states, head=head), none)
    assert mean.item() == 0.0
    # A rank whose gradients are missing would let the others wait for ever.
    for slopes, leaf in zip(slopes_of(mean, states, head.weight), (states, head.weight), strict=True):
        assert torch.equal(slopes, torch.zeros_like(leaf))


def test_the_weights_gradient_is_as_good_in_many_chunks_as_in_one_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(5)
    states = torch.randn(1, 512, WIDTH, generator=random).bfloat16()
    weight = torch.randn(VOCABULARY, WIDTH, generator=random).bfloat16()
    targets = torch.randint(VOCABULARY, (1, 512), generator=random)
    exact = head_of(weight.double())
    (truth,) = slopes_of(functional.cross_entropy(exact(states.double())[0], targets[0], reduction="sum"), exact.weight)
    errors = {}
    for rows in (512, 1):
        hold(rows, monkeypatch, itemsize=4)
        head = head_of(weight)
        total = losses_at(targets_of(targets), states=states, head=head).loss
        assert total is not None
        (slopes,) = slopes_of(total, head.weight)
        assert slopes.dtype == torch.bfloat16
        errors[rows] = float((slopes.double() - truth).norm() / truth.norm())
    # Summed in bf16, 512 parts err by 3e-2.
    assert errors[1] < 1.5 * errors[512] < 6e-3


def test_no_more_scores_than_the_bound_are_in_memory(
    case: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, weight, targets = case
    hold(4, monkeypatch)

    class Rows(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as torch has it
        most = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            is_view_of_weight = function is torch.ops.aten.t.default
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (VOCABULARY,) and not is_view_of_weight:
                self.most = max(self.most, len(result))
            return result

    with Rows() as rows:  # type: ignore[no-untyped-call]  # as torch has it
        losses_at(targets_of(targets), states=states.requires_grad_(), head=head_of(weight))
    assert rows.most == 4


def test_a_frozen_head_is_given_no_gradient_and_none_is_made(
    case: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, weight, targets = case
    head = head_of(weight).requires_grad_(requires_grad=False)
    monkeypatch.setattr(loss, "_add_product", None)
    total = losses_at(targets_of(targets), states=states.requires_grad_(), head=head).loss
    assert total is not None
    whole = functional.cross_entropy(head(states).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(slopes_of(total, states), slopes_of(whole, states), rtol=1e-12, atol=1e-14)


def test_an_evaluation_makes_no_gradient(case: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    states, weight, targets = case
    monkeypatch.setattr(loss, "_score_slopes", None)
    with torch.no_grad():
        losses = losses_at(targets_of(targets), states=states, head=head_of(weight))
    assert losses.loss is not None
    assert not losses.loss.requires_grad


def test_under_autocast_products_are_in_bf16_and_the_gradient_of_an_fp32_weight_is_in_fp32(
    case: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, weight, targets = case
    hold(2, monkeypatch, itemsize=4)
    head = head_of(weight.float())
    half = head_of(weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        total = losses_at(targets_of(targets), states=states.float(), head=head).loss
    same = losses_at(targets_of(targets), states=states.bfloat16(), head=half).loss
    assert total is not None
    assert same is not None
    assert total.item() == same.item()
    (slopes,), (rounded,) = slopes_of(total, head.weight), slopes_of(same, half.weight)
    assert slopes.dtype == torch.float32
    assert torch.equal(slopes.bfloat16(), rounded)
    assert not torch.equal(slopes, rounded.float())


class Wrapped(nn.Module):
    """A head as an adapter leaves it: it gives scores only."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.base = head_of(weight)

    def forward(self, states: torch.Tensor) -> Any:
        return self.base(states) * 2


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_a_head_that_gives_scores_only_has_the_losses_of_its_scores(
    smoothing: float, case: tuple[torch.Tensor, ...]
) -> None:
    states, weight, targets = case
    wrapped, doubled = Wrapped(weight), head_of(weight * 2)
    asked = targets_of(targets, label_smoothing=smoothing)
    one, other = (losses_at(asked, states=states, head=head) for head in (wrapped, doubled))
    torch.testing.assert_close(one.target_losses, other.target_losses)
    assert one.loss is not None
    assert other.loss is not None
    (slopes,), (twice,) = slopes_of(one.loss, wrapped.base.weight), slopes_of(other.loss, doubled.weight)
    torch.testing.assert_close(slopes, twice * 2)


def test_without_targets_a_head_gives_scores() -> None:
    assert torch.equal(head_of(torch.eye(3))(scores), scores)


def test_targets_are_found_at_their_places_of_rows_laid_end_to_end() -> None:
    targets = targets_of(labels, label_smoothing=0.5)
    assert isinstance(targets, Targets)
    assert (targets.places.tolist(), targets.ids.tolist(), targets.label_smoothing) == ([0, 1, 2], [2, 1, 0], 0.5)
