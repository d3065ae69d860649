"""A model writes the same whatever stands beside a prompt, and what transformers' own generation would write."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from ds_sft.errors import NumericsError
from ds_sft.families import family_of
from ds_sft.model.decoding import Ends, Written, by_chance, ends_of, greedy, write, write_all
from ds_sft.model.folder import find_model_folder
from ds_sft.model.load import Held, empty_model, read_weights

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 200, 31], [7], [300, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21], [44, 45, 46]]
FAMILIES = ["tiny_checkpoint", "tiny_yuan2"]


def loaded(folder: Path) -> tuple[PreTrainedModel, Ends]:
    found = find_model_folder(str(folder), cache_dir=None)
    family = family_of(found.config, folder=folder)
    empty = empty_model(found, family=family, max_tokens=64)
    model = read_weights(empty, found, family=family, how=Held(torch.float32, "sdpa"))
    ends = ends_of(model, family.load_tokenizer(folder), is_encoder_decoder=family.is_encoder_decoder)
    # With small weights a model says its last token again and again.
    for name, weight in model.named_parameters():
        if "proj" in name or "conv" in name or "block" in name:
            weight.data *= 4
    model.train(mode=False)
    return model, ends


def answers(model: Any, ends: Ends, prompts: list[list[int]], choose: Any = greedy, **limits: int) -> list[Written]:
    given = {"ends": ends, "max_new_tokens": 12, "device": CPU, "choose": choose, **limits}
    return write_all(write(model, prompts, **given), num_rows=len(prompts), end=ends.end)


@pytest.mark.parametrize("fixture", FAMILIES)
def test_a_prompt_is_answered_beside_longer_and_shorter_ones_as_it_is_alone(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    model, ends = loaded(request.getfixturevalue(fixture))
    alone = [answers(model, ends, [prompt])[0] for prompt in PROMPTS]
    assert answers(model, ends, PROMPTS) == alone
    assert answers(model, ends, PROMPTS[::-1]) == alone[::-1]
    assert len({token for answer in alone for token in answer.ids}) > 3


@pytest.mark.parametrize("fixture", FAMILIES)
def test_greedy_answers_are_those_of_transformers(fixture: str, request: pytest.FixtureRequest) -> None:
    model, ends = loaded(request.getfixturevalue(fixture))
    config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=ends.end,
        pad_token_id=ends.pad,
        decoder_start_token_id=ends.start,
    )
    for prompt, answer in zip(PROMPTS, answers(model, ends, PROMPTS), strict=True):
        ids = torch.tensor([prompt])
        found: Any = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)  # type: ignore[operator]  # transformers leaves it untyped
        assert answer.ids == found[0, 1 if ends.start is not None else len(prompt) :].tolist()


@pytest.mark.parametrize("fixture", FAMILIES)
def test_what_is_drawn_depends_on_the_seed_of_a_row_and_not_on_its_neighbours(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    model, ends = loaded(request.getfixturevalue(fixture))

    def drawn(numbers: list[int]) -> list[Written]:
        seeds = [f"1 {number}" for number in numbers]
        choose = by_chance(temperature=1.0, top_p=0.9, seeds=seeds)
        return answers(model, ends, [PROMPTS[number] for number in numbers], choose)

    together = drawn([0, 1, 2, 3])
    assert [drawn([number])[0] for number in range(4)] == together
    assert drawn([2, 0])[1] == together[0]
    assert together != answers(model, ends, PROMPTS)


class Counts(torch.nn.Module):
    """Writes 1 until it has written as many as its prompt has tokens, then 2."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def forward(self, attention_mask: torch.Tensor, **_others: Any) -> dict[str, Any]:
        if self.num_calls == 0:
            self.lengths = attention_mask.sum(dim=1)
        is_over = self.lengths <= self.num_calls
        self.num_calls += 1
        scores = torch.stack([torch.zeros_like(is_over), ~is_over, is_over], dim=1).float()
        return {"logits": scores[:, None], "past_key_values": None}


def test_a_row_that_has_ended_gets_no_more_tokens_and_the_limit_cuts_the_others() -> None:
    found = answers(Counts(), Ends(None, 2, 0), [[5], [5, 5, 5], [5] * 9], max_new_tokens=4)
    assert found == [Written([1], is_whole=True), Written([1, 1, 1], is_whole=True), Written([1] * 4, is_whole=False)]


def test_it_ends_with_the_longest_row_unless_others_are_not_done() -> None:
    alone, with_others = Counts(), Counts()
    answers(alone, Ends(None, 2, 0), [[5], [5, 5]])
    given: dict[str, Any] = {"ends": Ends(None, 2, 0), "max_new_tokens": 7, "device": CPU, "choose": greedy}
    steps = list(write(with_others, [[5], [5, 5]], **given, agree=lambda _is_left: True))
    assert (alone.num_calls, with_others.num_calls) == (3, 7)
    assert steps == [[1, 1], [2, 1], [None, 2], *[[None, None]] * 4]


def test_only_the_likeliest_tokens_are_drawn_that_together_reach_top_p() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05]]).log()
    for top_p, expected in ((0.4, {0}), (0.5, {0}), (0.69, {0, 1}), (0.84, {0, 1, 2}), (1.0, {0, 1, 2, 3, 4})):
        choose = by_chance(temperature=1.0, top_p=top_p, seeds=["a"])
        assert {int(choose(scores)) for _ in range(300)} == expected


def test_tokens_are_drawn_as_often_as_their_scores_say() -> None:
    choose = by_chance(temperature=0.5, top_p=1.0, seeds=[str(row) for row in range(4000)])
    drawn = choose(torch.tensor([[0.0, 1.0, 0.5]]).expand(4000, 3))
    # At half the temperature, scores count twice: e^0 : e^2 : e^1.
    expected = torch.tensor([1.0, 7.389, 2.718]) / 11.107
    assert (torch.bincount(drawn) / 4000 - expected).abs().max() < 0.025


def test_scores_that_are_no_numbers_are_one_fault() -> None:
    class Broken(Counts):
        def forward(self, attention_mask: torch.Tensor, **others: Any) -> dict[str, Any]:
            found = super().forward(attention_mask, **others)
            return found | {"logits": found["logits"] + torch.nan}

    with pytest.raises(NumericsError, match="scores must be finite"):
        answers(Broken(), Ends(None, 2, 0), [[5]])
