"""Yuan2 over flat batches is Yuan2 over each document alone: losses, gradients, bits."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.integrations import sdpa_attention

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from tests.families.yuan2.native.golden import LOGITS, cases, model
from tests.flat import causal, documents, gradients, tokens, worst_difference

VOCABULARY = 23
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LENGTHS = [5, 1, 2, 26, 5]
IDS = tokens(LENGTHS, vocabulary=VOCABULARY, seed=1)
LABELS = tokens(LENGTHS, vocabulary=VOCABULARY, seed=7, ignored=0.4)
BATCH = causal(IDS, LABELS)


def small(attention: str = "sdpa", *, is_tied: bool = True) -> Any:
    """Make a Yuan2 in fp64."""
    torch.manual_seed(0)
    tokens: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = Yuan2Config(vocab_size=VOCABULARY, tie_word_embeddings=is_tied, **SHAPE, **tokens)  # type: ignore[arg-type]  # a dict of numbers
    made: Any = Yuan2ForCausalLM(config)
    made.set_attn_implementation(attention)
    return made.double()


def losses_alone(yuan2: Any) -> torch.Tensor:
    """Give the losses of all targets, each document alone, from its logits."""
    parts = [
        functional.cross_entropy(yuan2(ids[None]).logits[0], labels, reduction="none")[labels != IGNORE_INDEX]
        for ids, labels in zip(IDS, LABELS, strict=True)
    ]
    return torch.cat(parts)


# The official eager softmax is in fp32.
@pytest.mark.parametrize(("attention", "noise"), [("sdpa", 1e-12), ("eager", 1e-6)])
@pytest.mark.parametrize("is_tied", [True, False])
def test_losses_and_gradients_are_those_of_each_document_alone(attention: str, noise: float, is_tied: bool) -> None:
    yuan2 = small(attention, is_tied=is_tied)
    found, alone = yuan2(**BATCH), losses_alone(yuan2)
    torch.testing.assert_close(found.target_losses, alone.detach(), rtol=noise, atol=noise)
    assert worst_difference(gradients(yuan2, found.loss), gradients(yuan2, alone.sum())) < noise


def test_logits_are_the_official_ones_of_each_document() -> None:
    ids, numbers = cases()["packed_clean/input_ids"], cases()["packed_clean/document_id"]
    for row in range(2):
        pieces = torch.split(ids[row], torch.unique_consecutive(numbers[row], return_counts=True)[1].tolist())
        with torch.no_grad():
            found = model("sdpa")(ids[[row]], documents=documents(pieces)).logits
        wanted = cases()["packed_clean/logits_per_document"][row]
        torch.testing.assert_close(found[0], wanted, rtol=0, atol=LOGITS)


@pytest.mark.parametrize("changed", [0, 1, 3])
def test_changing_a_document_leaves_every_other_bit_equal(changed: int) -> None:
    yuan2 = small().float()
    other = [*IDS]
    other[changed] = (other[changed] + 1) % VOCABULARY
    sizes = [int(one.ne(IGNORE_INDEX).sum()) for one in LABELS]
    seen = [yuan2(**causal(ids, LABELS)).target_losses.split(sizes) for ids in (IDS, other)]
    for index, (before, after) in enumerate(zip(*seen, strict=True)):
        assert torch.equal(before, after) is (index != changed)


def test_no_mask_of_all_tokens_with_all_tokens_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    kernel = functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
        seen.append((query.shape[2], more["attn_mask"], more["is_causal"]))
        return kernel(query, *others, **more)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", None)
    small()(**BATCH)
    assert seen == [(length, None, True) for length in LENGTHS] * 2


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(is_reentrant: bool) -> None:
    yuan2 = small()
    wanted = gradients(yuan2, yuan2(**BATCH).loss)
    calls = []
    yuan2.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    yuan2.activation_checkpointing_enable({"use_reentrant": is_reentrant})
    yuan2(**BATCH).loss.backward()
    assert len(calls) == 2, "the layer must have run again in the backward pass"
    assert worst_difference({name: weight.grad for name, weight in yuan2.named_parameters()}, wanted) < 1e-12


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "documents of other tokens": (
        {"documents": documents(IDS[:2])},
        r"must be integers of shape \[1, 39\], but .* \[1, 6\]",
    ),
    "a cache": ({"past_key_values": DynamicCache()}, "cannot go with a cache"),
    "use_cache": ({"use_cache": True}, "cannot go with a cache"),
    "offsets": ({"offsets": torch.tensor([0, 39])}, "offsets: tells nothing to the filters"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_the_documents_is_refused(name: str) -> None:
    arguments, told = REFUSED[name]
    with pytest.raises(ValueError, match=told):
        small()(**{**BATCH, **arguments})


def test_an_attention_that_cannot_keep_documents_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    yuan2 = small()
    monkeypatch.setattr(yuan2.config, "_attn_implementation", "paged|sdpa")
    with pytest.raises(ValueError, match=r"attn_implementation: must be able to keep documents apart .*'paged\|sdpa'"):
        yuan2(**BATCH)
