"""Numbers that are not finite are left out, told, and end a run that does not recover; jumps of the loss are told."""

import math
import random
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pytest
import torch

from ds_sft.errors import NumericsError
from ds_sft.training.numerics import NanPolicy, Numerics, Spikes, StepGuard, on_any_rank
from tests.ranks import run_ranks
from tests.state_jobs import flags_of_all

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")
BAD = "step 7: loss and gradients must be finite, but the loss is nan and the gradient norm 2.5"
OPTIMIZERS: dict[str, Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]] = {
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.1),
    "AdamW, fused": lambda weights: torch.optim.AdamW(weights, lr=0.1, fused=True),
    "SGD, momentum": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
}


def judge(numerics: Numerics, step: int, *, is_finite: bool = False) -> bool:
    return numerics.judge(step, loss=NAN, grad_norm=2.5, is_finite=is_finite)


def test_skip_leaves_the_step_out_with_a_line(told: pytest.LogCaptureFixture) -> None:
    assert judge(Numerics("skip", CPU), 7) is False
    assert told.messages == [f"{BAD}; the step is left out (nan_policy skip)"]
    assert told.records[0].levelname == "WARNING"


def test_stop_ends_the_run() -> None:
    with pytest.raises(NumericsError) as caught:
        judge(Numerics("stop", CPU), 7)
    assert caught.value.exit_code == 65
    assert str(caught.value) == f"{BAD}; nan_policy stop ends the run; lower --learning_rate or look at the data"


def test_rollback_asks_for_the_last_checkpoint(told: pytest.LogCaptureFixture) -> None:
    assert judge(Numerics("rollback", CPU), 7) is True
    assert told.messages == [f"{BAD}; the step is left out (nan_policy rollback)"]


@pytest.mark.parametrize("policy", get_args(NanPolicy))
def test_a_finite_step_is_no_matter(policy: NanPolicy, told: pytest.LogCaptureFixture) -> None:
    assert judge(Numerics(policy, CPU), 7, is_finite=True) is False
    assert told.messages == []


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_three_in_a_row_end_the_run(policy: NanPolicy) -> None:
    numerics = Numerics(policy, CPU)
    for step in (1, 2):
        judge(numerics, step)
    with pytest.raises(NumericsError, match=r"^step 3: .*, the third time in a row; lower --learning_rate"):
        judge(numerics, 3)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_good_step_begins_the_row_anew(policy: NanPolicy) -> None:
    numerics = Numerics(policy, CPU)
    for step in range(1, 30):
        judge(numerics, step, is_finite=step % 3 == 0)


def test_the_loss_of_a_step_is_the_sum_of_its_micro_batches() -> None:
    numerics = Numerics("skip", CPU)
    for loss in (0.25, 0.5):
        numerics.add(torch.tensor(loss))
    assert numerics.look(2.5) == (0.75, 2.5, True)
    numerics.add(torch.tensor(0.125))
    assert numerics.look(2.5) == (0.125, 2.5, True)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_bad_micro_batch_makes_its_step_bad_and_no_other(bad: float) -> None:
    numerics = Numerics("skip", CPU)
    for loss in (0.25, bad, 0.5):
        numerics.add(torch.tensor(loss))
    assert numerics.look(2.5)[2] is False
    numerics.add(torch.tensor(0.5))
    assert numerics.look(2.5) == (0.5, 2.5, True)


@pytest.mark.parametrize(("loss", "counted"), [(0.75, 0.75), (NAN, 0), (INF, 0), (-INF, 0)])
def test_a_bad_loss_adds_nothing_to_the_sum_that_is_logged(loss: float, counted: float) -> None:
    assert Numerics("skip", CPU).add(torch.tensor(loss)).item() == counted


@pytest.mark.parametrize(("norm", "is_finite"), [(2.5, True), (NAN, False), (INF, False), (None, True)])
def test_a_bad_gradient_norm_makes_the_step_bad_and_an_unknown_one_does_not(
    norm: float | None, is_finite: bool
) -> None:
    numerics = Numerics("skip", CPU)
    numerics.add(torch.tensor(0.5))
    assert numerics.look(norm)[2] is is_finite


def test_a_line_over_steps_that_were_left_out_has_no_loss_and_says_how_many() -> None:
    numerics = Numerics("skip", CPU)
    assert numerics.report() == {}
    for step in (1, 2):
        judge(numerics, step)
    judge(numerics, 3, is_finite=True)
    assert numerics.report() == {"loss": None, "left_out_steps": 2}
    assert numerics.report() == {}


def spikes_in(losses: Sequence[float]) -> list[int]:
    spikes = Spikes()
    return [number for number, loss in enumerate(losses) if spikes.deviation(loss) is not None]


def curve(seed: int, *, noise: float, num_points: int = 500) -> list[float]:
    """A loss that falls from 4 to 1, each point off by a normal share of itself."""
    draw = random.Random(seed)
    return [(1 + 3 * math.exp(-step / 100)) * (1 + draw.gauss(0, noise)) for step in range(num_points)]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1, 0.3])
def test_clean_runs_raise_no_alarm(noise: float) -> None:
    assert [spikes_in(curve(seed, noise=noise)) for seed in range(20)] == [[]] * 20


@pytest.mark.parametrize("seed", range(5))
def test_a_jump_is_told_at_its_point(seed: int) -> None:
    losses = curve(seed, noise=0.05)
    losses[300] += 2
    assert spikes_in(losses) == [300]


def test_a_jump_is_told_in_deviations_of_the_last_64_losses(told: pytest.LogCaptureFixture) -> None:
    losses = curve(3, noise=0.1, num_points=200)
    spikes = Spikes()
    for step, loss in enumerate(losses):
        assert spikes.note(step, loss) == {}
    last = np.array(losses[-64:])
    spread = 1.4826 * np.median(np.abs(last - np.median(last)))
    expected = round(float((9.0 - np.median(last)) / spread), 1)
    assert spikes.note(200, 9.0) == {"loss_spike": pytest.approx(expected)}
    assert told.messages == [
        f"step 200: the loss 9.0000 stands {expected} deviations above the median before it",
    ]


@pytest.mark.parametrize(("deviations", "is_told"), [(7.9, False), (8.1, True)])
def test_more_than_eight_deviations_are_a_spike(deviations: float, is_told: bool) -> None:
    # Their median is 1, and so is their median distance from it.
    assert spikes_in([*([0.0, 2.0] * 8), 1 + deviations * 1.4826]) == [16] * is_told


@pytest.mark.parametrize(("num_known", "is_told"), [(0, False), (1, False), (15, False), (16, True)])
def test_fewer_than_16_losses_tell_nothing(num_known: int, is_told: bool) -> None:
    losses = curve(1, noise=0.1, num_points=num_known)
    assert spikes_in([*losses, 1000.0]) == [num_known] * is_told


def test_a_rise_in_the_fifth_digit_of_a_flat_loss_is_no_spike() -> None:
    assert spikes_in([*([1.0] * 64), 1.00001]) == []


def test_a_fall_is_no_spike() -> None:
    assert spikes_in([*curve(1, noise=0.01), 0.0, -100.0]) == []


@pytest.mark.parametrize("loss", [NAN, INF, None])
def test_a_loss_that_is_none_is_neither_told_nor_remembered(loss: float | None) -> None:
    spikes = Spikes()
    spikes.restore([1.0, 2.0])
    assert spikes.note(1, loss) == {}
    assert spikes.window == [1.0, 2.0]


def test_a_run_that_goes_on_judges_as_the_one_that_stopped() -> None:
    losses = curve(2, noise=0.1, num_points=100)
    before, after = Spikes(), Spikes()
    for loss in losses:
        before.deviation(loss)
    after.restore(before.window)
    assert after.window == losses[-64:]
    assert after.deviation(9.0) == before.deviation(9.0) is not None


def weights_and_guard(optimizer: str) -> tuple[list[torch.Tensor], torch.optim.Optimizer, StepGuard]:
    weights = [torch.arange(3.0).requires_grad_(), torch.ones(2).requires_grad_(), torch.ones(1).requires_grad_()]
    living = OPTIMIZERS[optimizer](weights)
    return weights, living, StepGuard(living)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bad_gradient_keeps_all_weights_and_averages(optimizer: str, bad: float) -> None:
    weights, living, guard = weights_and_guard(optimizer)
    for gradient in (torch.ones(3), torch.tensor([1.0, bad, 1.0])):
        before = [weight.detach().clone() for weight in weights]
        known = [{name: value.clone() for name, value in state.items()} for state in living.state.values()]
        weights[0].grad, weights[1].grad = gradient.clone(), torch.ones(2)
        living.step()
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    for state, old in zip(living.state.values(), known, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in state.items())
    assert guard.norm is not None
    assert not math.isfinite(guard.norm)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_good_gradient_steps_as_without_a_guard(optimizer: str) -> None:
    weights, living, guard = weights_and_guard(optimizer)
    plain = [weight.detach().clone().requires_grad_() for weight in weights]
    unguarded = OPTIMIZERS[optimizer](plain)
    for those, stepped in ((weights, living), (plain, unguarded)):
        those[0].grad, those[1].grad = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2.0, 4.0])
        stepped.step()
    assert all(torch.equal(weight, other) for weight, other in zip(weights, plain, strict=True))
    assert not torch.equal(weights[0], torch.arange(3.0))
    assert guard.norm == 5.0  # sqrt(4 + 1 + 4 + 16)


def test_a_step_after_a_bad_one_is_made() -> None:
    weights, living, guard = weights_and_guard("AdamW")
    for gradient in (NAN, 1.0):
        weights[2].grad = torch.tensor([gradient])
        living.step()
    assert guard.norm == 1.0
    assert weights[2].item() < 1


def test_a_step_without_gradients_changes_nothing() -> None:
    weights, living, guard = weights_and_guard("AdamW")
    living.step()
    assert guard.norm == 0.0
    assert torch.equal(weights[0], torch.arange(3.0))


def test_alone_the_flags_are_the_own_ones() -> None:
    assert on_any_rank([True, False], device=CPU) == [True, False]


def test_a_flag_that_is_up_on_one_rank_is_up_on_all() -> None:
    assert run_ranks(flags_of_all, world_size=2) == [[True, True, False]] * 2
