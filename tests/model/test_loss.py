"""The loss against the formula, written out in Python numbers; and the sum of parts is the whole."""

import math

import pytest
import torch

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.model.loss import token_losses, token_mean_loss

LOGITS = [[[0.5, -1.0, 2.0], [3.0, 0.0, -3.0]], [[1.0, 1.0, 1.0], [-2.0, 4.0, 0.25]]]
LABELS = [[2, 1], [0, IGNORE_INDEX]]
logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)


def loss_of(scores: list[float], label: int, smoothing: float) -> float:
    """Give -sum of q log p with q = (1 - smoothing) at the label plus smoothing / V everywhere; 0 where ignored."""
    if label == IGNORE_INDEX:
        return 0.0
    log_total = math.log(sum(math.exp(score) for score in scores))
    log_p = [score - log_total for score in scores]
    return -(1 - smoothing) * log_p[label] - smoothing * sum(log_p) / len(scores)


def expected(smoothing: float) -> list[list[float]]:
    return [
        [loss_of(scores, label, smoothing) for scores, label in zip(*row, strict=True)]
        for row in zip(LOGITS, LABELS, strict=True)
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_every_token_has_the_loss_of_the_formula(smoothing: float) -> None:
    found = token_losses(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(found, torch.tensor(expected(smoothing)))


def test_an_ignored_token_has_no_loss_with_smoothing_either() -> None:
    assert token_losses(logits, labels, label_smoothing=0.5)[1, 1].item() == 0.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_is_over_supervised_tokens_only(smoothing: float) -> None:
    found = token_mean_loss({"logits": logits}, labels, label_smoothing=smoothing)
    assert found.item() == pytest.approx(sum(map(sum, expected(smoothing))) / 3, rel=1e-6)


@pytest.mark.parametrize("number", [12, torch.tensor(12)])
def test_the_sum_is_divided_by_the_number_that_is_given(number: int | torch.Tensor) -> None:
    found = token_mean_loss({"logits": logits}, labels, number)
    assert found.item() == pytest.approx(sum(map(sum, expected(0.0))) / 12, rel=1e-6)


def test_micro_batches_add_up_to_the_loss_of_the_whole_batch() -> None:
    parts = [token_mean_loss({"logits": logits[[row]]}, labels[[row]], 3) for row in range(2)]
    whole = token_mean_loss({"logits": logits}, labels)
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-6)


def test_a_batch_without_supervised_tokens_has_the_loss_zero_and_not_nan() -> None:
    assert token_mean_loss({"logits": logits}, torch.full((2, 2), IGNORE_INDEX)).item() == 0.0


def test_the_gradient_is_softmax_minus_target_over_the_number_and_zero_where_ignored() -> None:
    scores = logits.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(token_mean_loss({"logits": scores}, labels, 3), scores)
    for row in range(2):
        for column in range(2):
            label = LABELS[row][column]
            exps = [math.exp(score) for score in LOGITS[row][column]]
            slope = [(value / sum(exps) - (index == label)) / 3 for index, value in enumerate(exps)]
            wanted = [0.0] * 3 if label == IGNORE_INDEX else slope
            assert slopes[row, column].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_half_precision_scores_are_summed_in_fp32() -> None:
    wide = torch.full((1, 1, 4096), 5.0, dtype=torch.bfloat16)
    found = token_losses(wide, torch.tensor([[7]]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(math.log(4096), rel=1e-6)
