"""Yuan2 over trees is Yuan2 over each sample alone: losses, gradients, bits, filters at the branches."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from ds_sft.families.yuan2.native.norm import Yuan2RMSNorm
from tests.flat import causal, gradients, shared, tokens, worst_difference

VOCABULARY = 23
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
TRUNK = tokens([20], vocabulary=VOCABULARY, seed=1)[0]
BRANCHES = [(20, 4), (17, 1), (17, 2), (9, 3), (1, 5)]
"""Where each document leaves the trunk, and how many tokens of its own follow: filters see one to three of both."""
OWN = tokens([num for _, num in BRANCHES], vocabulary=VOCABULARY, seed=2)
IDS = [torch.cat([TRUNK[:at], own]) for (at, _), own in zip(BRANCHES, OWN, strict=True)]
SHARED = [0, *(min(before, at) for (before, _), (at, _) in pairwise(BRANCHES))]
OTHERS = tokens([6], vocabulary=VOCABULARY, seed=3)
"""A document that shares nothing."""
DRAWN = tokens([len(ids) for ids in [*IDS, *OTHERS]], vocabulary=VOCABULARY, seed=7, ignored=0.3)
LABELS = [torch.cat([labels[:-1], labels.new_tensor([5])]) for labels in DRAWN]
"""The last token is supervised, so that each document has a loss that depends on all of its own."""


def forest(ids: Sequence[torch.Tensor] = IDS) -> dict[str, Any]:
    """Give what the model is asked with."""
    return shared([*ids, *OTHERS], LABELS, [*SHARED, 0])


def small(dtype: torch.dtype, *, is_tied: bool = True) -> Any:
    torch.manual_seed(0)
    no_tokens: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = Yuan2Config(vocab_size=VOCABULARY, tie_word_embeddings=is_tied, **SHAPE, **no_tokens)  # type: ignore[arg-type]  # a dict of numbers
    made: Any = Yuan2ForCausalLM(config)
    return made.to(dtype)


@pytest.fixture
def _wide_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms are in fp32 whatever the dtype, which would hide in fp64 what is not exact."""

    def forward(self: Any, states: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed

    monkeypatch.setattr(Yuan2RMSNorm, "forward", forward)


@pytest.mark.usefixtures("_wide_norms")
@pytest.mark.parametrize(("dtype", "noise"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("is_tied", [True, False])
def test_losses_and_gradients_are_those_of_each_sample_alone(dtype: torch.dtype, noise: float, is_tied: bool) -> None:
    yuan2 = small(dtype, is_tied=is_tied)
    found = yuan2(**forest())
    alone = [yuan2(**causal([ids], [labels])) for ids, labels in zip([*IDS, *OTHERS], LABELS, strict=True)]
    wanted = torch.cat([one.target_losses for one in alone])
    torch.testing.assert_close(found.target_losses, wanted, rtol=noise, atol=noise)
    total = torch.stack([one.loss for one in alone]).sum()
    assert worst_difference(gradients(yuan2, found.loss), gradients(yuan2, total)) < noise


@pytest.mark.parametrize("changed", range(len(IDS)))
def test_changing_a_branch_leaves_every_other_bit_equal(changed: int) -> None:
    yuan2 = small(torch.float32)
    other = [*IDS]
    other[changed] = torch.cat([IDS[changed][: BRANCHES[changed][0]], (OWN[changed] + 1) % VOCABULARY])
    sizes = [int(one.ne(IGNORE_INDEX).sum()) for one in LABELS]
    before, after = (yuan2(**forest(ids)).target_losses.split(sizes) for ids in (IDS, other))
    for index, pair in enumerate(zip(before, after, strict=True)):
        assert torch.equal(*pair) is (index != changed)


@pytest.mark.parametrize("branch", range(1, len(IDS)))
def test_the_filter_reads_through_the_branch_point(branch: int) -> None:
    gate = small(torch.float64).model.layers[0].self_attn.lf_gate
    batch = forest()
    trees = batch["documents"]
    states = torch.randn(
        1, trees.stored.offsets[-1], 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    goes_on = trees.positions[..., None] > 0
    goes_on[:, trees.firsts] = False
    found = gate(states, is_token=None, goes_on=goes_on, cache=None, branches=(trees.firsts, trees.parents))
    begin, end = trees.whole.offsets[branch : branch + 2]
    path = trees.places[begin:end]
    wanted = gate(states[:, path], is_token=None, goes_on=None, cache=None)
    # The norm is in fp32.
    torch.testing.assert_close(found[:, path], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(is_reentrant: bool) -> None:
    yuan2 = small(torch.float64).train()
    wanted = gradients(yuan2, yuan2(**forest()).loss)
    calls = []
    yuan2.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    yuan2.activation_checkpointing_enable({"use_reentrant": is_reentrant})
    yuan2(**forest()).loss.backward()
    assert len(calls) == 2, "the layer must have run again in the backward pass"
    assert worst_difference({name: weight.grad for name, weight in yuan2.named_parameters()}, wanted) < 1e-12


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other tokens": ({"input_ids": IDS[0][None]}, r"must be integers of shape \[1, 24\], but .* \[1, 41\]"),
    "a cache": ({"past_key_values": DynamicCache()}, "cannot go with a cache"),
    "positions": ({"position_ids": torch.arange(41)[None]}, "position_ids: are counted"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_the_trees_is_refused(name: str) -> None:
    arguments, told = REFUSED[name]
    with pytest.raises(ValueError, match=told):
        small(torch.float32)(**{**forest(), **arguments})


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_an_attention_that_cannot_follow_branches_is_refused(attention: str) -> None:
    yuan2 = small(torch.float32)
    yuan2.set_attn_implementation(attention)
    with pytest.raises(ValueError, match=f"attn_implementation: must be sdpa where .* but is '{attention}'"):
        yuan2(**forest())
