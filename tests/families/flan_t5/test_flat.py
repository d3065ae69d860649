"""T5 over flat batches is T5 over each document alone, as transformers runs it: losses, gradients, bits."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import T5Config

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.families.flan_t5.flat import position_biases
from ds_sft.families.flan_t5.modeling import FlanT5, UntiedT5
from ds_sft.model.loss import targets_of
from tests.flat import documents, gradients, tokens, with_encoder, worst_difference

VOCABULARY = 23
SHAPE = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3}
# Few buckets and a small largest distance, so that far distances share one.
BUCKETS = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
SOURCE_LENGTHS, TARGET_LENGTHS = [5, 1, 9, 26, 5], [3, 7, 1, 18, 3]
SOURCES = tokens(SOURCE_LENGTHS, vocabulary=VOCABULARY, seed=1)
DECODER_IDS = tokens(TARGET_LENGTHS, vocabulary=VOCABULARY, seed=2)
LABELS = tokens(TARGET_LENGTHS, vocabulary=VOCABULARY, seed=4, ignored=0.4)
BATCH = with_encoder(SOURCES, DECODER_IDS, LABELS)


def model(kind: type[FlanT5] = UntiedT5, attention: str = "sdpa", dropout: float = 0.0) -> Any:
    """Make a T5 whose position biases matter, in fp64."""
    torch.manual_seed(0)
    settings = {**SHAPE, **BUCKETS, "dropout_rate": dropout, "feed_forward_proj": "gated-gelu"}
    made = kind(T5Config.from_dict({**settings, "tie_word_embeddings": kind is FlanT5}))
    made.set_attn_implementation(attention)
    for name, weight in made.named_parameters():
        if "relative_attention_bias" in name:
            torch.nn.init.normal_(weight)
    return made.double()


def losses_alone(t5: Any) -> torch.Tensor:
    """Give the losses of all targets, each document alone, from transformers' logits."""
    pairs = zip(SOURCES, DECODER_IDS, LABELS, strict=True)
    parts = [
        functional.cross_entropy(
            t5(input_ids=source[None], decoder_input_ids=ids[None]).logits[0], labels, reduction="none"
        )[labels != IGNORE_INDEX]
        for source, ids, labels in pairs
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [UntiedT5, FlanT5])
def test_losses_and_gradients_are_those_of_each_document_alone(kind: type[FlanT5], attention: str) -> None:
    t5 = model(kind, attention)
    found, alone = t5(**BATCH), losses_alone(t5)
    torch.testing.assert_close(found.target_losses, alone.detach(), rtol=1e-12, atol=1e-12)
    assert worst_difference(gradients(t5, found.loss), gradients(t5, alone.sum())) < 1e-12


def test_losses_and_gradients_are_those_of_a_padded_batch() -> None:
    t5 = model()
    sources, ids = (pad_sequence(pieces, batch_first=True) for pieces in (SOURCES, DECODER_IDS))
    mask = pad_sequence([torch.ones_like(piece) for piece in SOURCES], batch_first=True)
    labels = pad_sequence(LABELS, batch_first=True, padding_value=IGNORE_INDEX)
    padded = t5(input_ids=sources, attention_mask=mask, decoder_input_ids=ids, targets=targets_of(labels))
    found = t5(**BATCH)
    torch.testing.assert_close(found.target_losses, padded.target_losses, rtol=1e-12, atol=1e-12)
    assert worst_difference(gradients(t5, found.loss), gradients(t5, padded.loss)) < 1e-12


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_biases_and_the_tables_gradient_are_those_of_transformers(stack: str) -> None:
    attention = model().get_submodule(f"{stack}.block.0.layer.0.SelfAttention")
    table = attention.relative_attention_bias.weight
    biases = position_biases(attention, documents(SOURCES))
    wanted = [attention.compute_bias(length, length) for length in SOURCE_LENGTHS]
    random = torch.Generator().manual_seed(7)
    weights = [torch.randn(bias.shape, generator=random, dtype=torch.double) for bias in wanted]
    if stack == "decoder":
        later = [torch.ones(length, length, dtype=torch.bool).triu(1) for length in SOURCE_LENGTHS]
        assert all(bias[:, :, hidden].eq(float("-inf")).all() for bias, hidden in zip(biases, later, strict=True))
        weights = [weight.masked_fill(hidden, 0) for weight, hidden in zip(weights, later, strict=True)]
        # Where a score is minus infinity, softmax gives its bias the gradient zero.
        biases = tuple(bias.masked_fill(hidden, 0) for bias, hidden in zip(biases, later, strict=True))
        wanted = [bias.masked_fill(hidden, 0) for bias, hidden in zip(wanted, later, strict=True)]
    for bias, other in zip(biases, wanted, strict=True):
        assert torch.equal(bias, other)
    slopes, truth = (
        torch.autograd.grad(sum((bias * weight).sum() for bias, weight in zip(some, weights, strict=True)), table)[0]
        for some in (biases, wanted)
    )
    torch.testing.assert_close(slopes, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("changed", [0, 1, 3])
def test_changing_a_document_leaves_every_other_bit_equal(side: str, changed: int, dropout: float) -> None:
    t5 = model(dropout=dropout).float()
    pieces = {"source": [*SOURCES], "target": [*DECODER_IDS]}
    pieces[side][changed] = (pieces[side][changed] + 1) % VOCABULARY
    batches = [BATCH, with_encoder(pieces["source"], pieces["target"], LABELS)]
    seen = []
    for batch in batches:
        torch.manual_seed(5)
        seen.append(t5(**batch).target_losses.split([int(one.ne(IGNORE_INDEX).sum()) for one in LABELS]))
    for index, (before, after) in enumerate(zip(*seen, strict=True)):
        assert torch.equal(before, after) is (index != changed)


def test_dropout_reaches_every_part_of_a_flat_batch() -> None:
    t5 = model(dropout=0.5)
    parts = [*(part for part in t5.modules() if isinstance(part, torch.nn.Dropout)), *_attentions(t5)]
    # 1 for each stack and 3 for each kind of layer, with 2 in a feed-forward part; and the attentions' own.
    assert len(parts) == 2 + 2 * (1 + 2) + 2 * (1 + 1 + 2) + 6
    t5.eval()
    still = t5(**BATCH).loss
    assert t5(**BATCH).loss.item() == still.item()
    for part in parts:
        part.train()
        assert t5(**BATCH).loss.item() != still.item(), part
        part.eval()


def _attentions(t5: Any) -> list[Any]:
    return [part for name, part in t5.named_modules() if name.endswith("Attention")]


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(is_reentrant: bool) -> None:
    t5 = model(dropout=0.1)
    torch.manual_seed(5)
    wanted = gradients(t5, t5(**BATCH).loss)
    calls = []
    t5.encoder.block[0].layer[0].SelfAttention.q.register_forward_hook(lambda *_: calls.append(1))
    t5.activation_checkpointing_enable({"use_reentrant": is_reentrant})
    torch.manual_seed(5)
    t5(**BATCH).loss.backward()
    assert len(calls) == 2, "the layer must have run again in the backward pass"
    assert worst_difference({name: weight.grad for name, weight in t5.named_parameters()}, wanted) < 1e-12


def test_an_attention_that_cannot_isolate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    t5 = model()
    monkeypatch.setattr(t5.encoder.config, "_attn_implementation", "flex_attention")
    with pytest.raises(
        ValueError, match=r"attn_implementation: must be able to keep documents apart .*'flex_attention'"
    ):
        t5(**BATCH)


@pytest.mark.parametrize("name", ["documents", "decoder_documents"])
def test_documents_of_other_tokens_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must have the shape \[1, 3\]"):
        model()(**{**BATCH, name: documents([torch.zeros(3)])})


@pytest.mark.gpu
def test_a_gpu_gives_the_losses_and_gradients_of_a_cpu() -> None:
    t5 = model().float()
    wanted = gradients(t5, t5(**BATCH).loss)
    device = torch.device("cuda")
    batch = {name: part.to(device) for name, part in BATCH.items() if "documents" not in name}
    for name in ("documents", "decoder_documents"):
        offsets = torch.tensor(BATCH[name].offsets)
        batch[name] = type(BATCH[name])(BATCH[name].offsets, offsets.to(device, torch.int32))
    t5.to(device)
    found = gradients(t5, t5(**batch).loss)
    assert worst_difference({name: slope.cpu() for name, slope in found.items()}, wanted) < 1e-4
