"""Packed documents are alone in every respect: logits, gradients, bits; what cannot be kept apart is refused."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ds_sft.families.yuan2.native.documents import view_of_documents
from tests.families.yuan2.native.golden import LOGITS, cases, difference, logits, model

PACKED = 2.5e-5
GRADIENT = 1e-4
DOCUMENTS = torch.tensor([[4] * 9 + [7] * 11 + [4] * 1 + [0] * 16, [-1] * 3 + [0] * 12 + [1] * 20 + [-1] * 2])


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def golden(request: pytest.FixtureRequest) -> Any:
    """The golden model under each attention."""
    return model(request.param)


def pieces(row: int) -> list[tuple[int, int]]:
    """Give begin and end of every document of a row, padding left out."""
    ids = DOCUMENTS[row].tolist()
    starts = [0, *(index for index in range(1, len(ids)) if ids[index] != ids[index - 1]), len(ids)]
    return [(begin, end) for begin, end in pairwise(starts) if ids[begin] >= 0]


def test_every_packed_document_has_the_logits_it_has_alone(golden: Any) -> None:
    ids = cases()["plain/input_ids"]
    found = logits(golden, ids, document_ids=DOCUMENTS)
    for row in (0, 1):
        for begin, end in pieces(row):
            alone = logits(golden, ids[row : row + 1, begin:end])
            assert difference(found[row, begin:end], alone[0]) < PACKED


def test_a_document_of_the_same_number_behind_another_one_is_a_new_document(golden: Any) -> None:
    ids = cases()["plain/input_ids"]
    renamed = DOCUMENTS.clone()
    renamed[0, 20] = 9
    assert torch.equal(logits(golden, ids, document_ids=DOCUMENTS)[0], logits(golden, ids, document_ids=renamed)[0])


def test_packed_gradients_are_the_sum_of_the_gradients_of_each_document_alone(golden: Any) -> None:
    ids = cases()["plain/input_ids"]
    weights = torch.randn(2, 37, 512, generator=torch.Generator().manual_seed(1))
    golden.zero_grad()
    packed = golden(ids, document_ids=DOCUMENTS).logits * weights
    packed[DOCUMENTS >= 0].sum().backward()
    found = {name: weight.grad.clone() for name, weight in golden.named_parameters() if weight.grad is not None}
    golden.zero_grad()
    for row in (0, 1):
        for begin, end in pieces(row):
            alone = golden(ids[row : row + 1, begin:end]).logits * weights[row, begin:end]
            alone.sum().backward()
    assert len(found) == 44
    for name, weight in golden.named_parameters():
        assert weight.grad is not None
        assert difference(found[name], weight.grad) < GRADIENT * float(weight.grad.abs().max()), name
    golden.zero_grad()


@pytest.mark.parametrize("place", [0, 8, 9, 19, 20, 21, 36])
def test_changing_a_token_leaves_every_other_document_bit_equal(golden: Any, place: int) -> None:
    ids = cases()["plain/input_ids"]
    changed = ids.clone()
    changed[0, place] = (changed[0, place] + 17) % 512
    before, after = (logits(golden, one, document_ids=DOCUMENTS) for one in (ids, changed))
    (begin, end), *_ = [piece for piece in pieces(0) if piece[0] <= place < piece[1]]
    is_other = torch.ones(37, dtype=torch.bool)
    is_other[begin:end] = False
    assert torch.equal(before[0, is_other], after[0, is_other])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0, place], after[0, place])


def test_changing_padding_changes_nothing(golden: Any) -> None:
    ids = cases()["plain/input_ids"]
    changed = ids.masked_fill(DOCUMENTS < 0, 3)
    before, after = (logits(golden, one, document_ids=DOCUMENTS) for one in (ids, changed))
    assert torch.equal(before[DOCUMENTS >= 0], after[DOCUMENTS >= 0])


def test_one_document_a_row_is_the_row(golden: Any) -> None:
    ids = cases()["plain/input_ids"]
    found = logits(golden, ids, document_ids=torch.zeros_like(ids))
    assert difference(found, cases()["plain/logits_eval"]) < LOGITS


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7))
def test_any_cut_of_a_row_gives_the_documents_alone(lengths: list[int]) -> None:
    ids = cases()["plain/input_ids"][:1, : sum(lengths)]
    lengths[-1] -= sum(lengths) - ids.shape[1]
    if lengths[-1] < 1:
        return
    document_ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    sdpa = _sdpa()
    found = torch.split(logits(sdpa, ids, document_ids=document_ids), lengths, dim=1)
    alone = [logits(sdpa, piece) for piece in torch.split(ids, lengths, dim=1)]
    assert max(difference(one, other) for one, other in zip(found, alone, strict=True)) < PACKED


_MODELS: list[Any] = []


def _sdpa() -> Any:
    if not _MODELS:
        _MODELS.append(model("sdpa"))
    return _MODELS[0]


@pytest.mark.slow  # it compiles
@pytest.mark.filterwarnings("ignore:_compile flag:DeprecationWarning", "ignore::UserWarning")  # transformers and torch
def test_flex_attention_keeps_documents_apart() -> None:
    # The backward pass of FlexAttention exists on GPUs only.
    flex = model("flex_attention")
    found = logits(flex, cases()["packed_clean/input_ids"], document_ids=cases()["packed_clean/document_id"])
    assert difference(found, cases()["packed_clean/logits_per_document"]) < PACKED
    mask = cases()["leftpad/attention_mask"]
    padded = logits(flex, cases()["leftpad/input_ids"], attention_mask=mask)
    truth = cases()["leftpad/logits_row1_unpadded_truth"][0]
    assert difference(padded[1][mask[1].bool()], truth) < LOGITS


def test_flash_attention_is_given_the_boundaries_of_every_document(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def flash(
        _module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **more: Any
    ) -> tuple[torch.Tensor, None]:
        """Attend as flash_attn_varlen_func does: rows end to end, causal inside each pair of boundaries."""
        seen.append({"mask": mask, **more})
        flat = [states.transpose(1, 2).flatten(0, 1).transpose(0, 1) for states in (query, key, value)]
        ends = more["cu_seq_lens_q"].tolist()
        parts = [
            scaled_dot_product_attention(
                flat[0][:, begin:end], flat[1][:, begin:end], flat[2][:, begin:end], is_causal=True
            )
            for begin, end in pairwise(ends)
        ]
        attended = torch.cat(parts, dim=1).transpose(0, 1)
        return attended.view(query.shape[0], query.shape[2], query.shape[1], query.shape[3]), None

    golden = model("sdpa")
    monkeypatch.setattr(golden.config, "_attn_implementation", "flash_attention_2")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", flash)
    found = logits(golden, cases()["packed_clean/input_ids"], document_ids=cases()["packed_clean/document_id"])
    assert difference(found, cases()["packed_clean/logits_per_document"]) < PACKED
    # The documents of the golden case, rows of 37 end to end.
    assert seen[0]["cu_seq_lens_q"].tolist() == [0, 9, 20, 21, 37, 51, 74]
    assert seen[0]["cu_seq_lens_k"].dtype == torch.int32
    assert (seen[0]["max_length_q"], seen[0]["max_length_k"], seen[0]["mask"]) == (23, 23, None)


IDS = torch.zeros(1, 6, dtype=torch.long)
TWO = torch.tensor([[0, 0, 0, 1, 1, 1]])
CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong shape": ({"document_ids": TWO[:, :5]}, r"document_ids: must be integers of shape \[1, 6\]"),
    "no integers": ({"document_ids": TWO.float()}, "must be integers .* but are torch.float32"),
    "a cache": (
        {"document_ids": TWO, "past_key_values": DynamicCache()},
        "cannot go with a cache, but past_key_values is given",
    ),
    "use_cache": ({"document_ids": TWO, "use_cache": True}, "cannot go with a cache, but use_cache is True"),
    "a mask of all ones beside padding": (
        {"document_ids": torch.tensor([[0, 0, 0, 0, -1, -1]]), "attention_mask": torch.ones(1, 6, dtype=torch.long)},
        "attention_mask: must be 0 exactly where document_ids is -1",
    ),
    "padding that the ids do not know": (
        {"document_ids": TWO, "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])},
        "attention_mask: must be 0 exactly where document_ids is -1",
    ),
    "a mask of another length": (
        {"document_ids": TWO, "attention_mask": torch.ones(1, 5)},
        "attention_mask: must have the shape",
    ),
    "positions that jump inside a document": (
        {"document_ids": TWO, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 3]])},
        "position_ids: must go up by one inside each document",
    ),
    "packed positions without documents": (
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])},
        "position_ids: must go up by one from token to token, but do not: .* give document_ids",
    ),
    "packed positions with a mask of all ones": (
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "attention_mask": torch.ones(1, 6, dtype=torch.long)},
        "give document_ids",
    ),
    "a mask for each pair of tokens": (
        {"attention_mask": torch.ones(1, 1, 6, 6)},
        r"attention_mask: must have shape \[B, tokens\], but has \[1, 1, 6, 6\]",
    ),
    "packed positions with a hole in the mask": (
        {
            "position_ids": torch.tensor([[0, 1, 0, 0, 1, 2]]),
            "attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1]]),
        },
        "give document_ids",
    ),
    "a mask of document numbers": (
        {"attention_mask": torch.tensor([[1, 1, 1, 2, 2, 2]])},
        "attention_mask: must be 0 or 1 for each token, but goes up to 2; give numbers of documents as document_ids",
    ),
    "boundaries for the attention alone": (
        {"cu_seq_lens_q": TWO, "cu_seq_lens_k": TWO, "max_length_q": 3, "max_length_k": 3},
        "cu_seq_lens_k, cu_seq_lens_q, max_length_k, max_length_q: tells nothing to the filters",
    ),
    "a misspelt name": (
        {"document_id": TWO},
        "document_id: tells nothing to the filters, but is given; give document_ids instead",
    ),
    "another model's name": ({"seq_idx": TWO}, "seq_idx: tells nothing to the filters"),
    "a cache without layers": (
        {"past_key_values": DynamicCache()},
        r"past_key_values: must have 3 layers, but has 0; make it with DynamicCache\(config=model.config\)",
    ),
    "a mask that is too short": (
        {"attention_mask": torch.ones(1, 4, dtype=torch.long)},
        "must cover 0 cached and 6 new tokens, but covers 4",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_arguments_that_contradict_each_other_are_refused(name: str) -> None:
    arguments, told = CONTRADICTIONS[name]
    with pytest.raises(ValueError, match=told):
        _sdpa()(IDS, **arguments)


def test_positions_that_do_not_go_on_behind_the_cache_are_refused() -> None:
    cache = DynamicCache(config=_sdpa().config)
    logits(_sdpa(), IDS, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="position_ids: must go on behind 6 cached tokens"):
        logits(_sdpa(), IDS, past_key_values=cache, position_ids=torch.arange(6)[None])


def test_packed_positions_without_documents_are_refused_in_a_compiled_graph_too() -> None:
    compiled = torch.compile(_sdpa(), backend="eager")
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    with pytest.raises((ValueError, RuntimeError), match="give document_ids"):
        logits(compiled, IDS, position_ids=positions, use_cache=False)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_scaled_by_the_longest_document_of_a_batch_cannot_be_packed(kind: str) -> None:
    scaling: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        scaling |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 256}
    with pytest.raises(ValueError, match=f"document_ids: cannot go with rope_type '{kind}'"):
        logits(model("sdpa", rope_parameters=scaling), IDS, document_ids=TWO)


def test_a_mask_and_positions_that_agree_with_the_documents_are_accepted() -> None:
    documents = torch.tensor([[0, 0, 1, 1, -1, -1]])
    mask, positions = (documents >= 0).long(), torch.tensor([[0, 1, 0, 1, 0, 0]])
    with_them = logits(_sdpa(), IDS, document_ids=documents, attention_mask=mask, position_ids=positions)
    assert difference(with_them[:, :4], logits(_sdpa(), IDS, document_ids=documents)[:, :4]) < LOGITS


def test_an_attention_that_cannot_keep_documents_apart_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sdpa().config, "_attn_implementation", "paged|sdpa")
    with pytest.raises(ValueError, match=r"attn_implementation: must be able to keep documents apart .*'paged\|sdpa'"):
        logits(_sdpa(), IDS, document_ids=TWO)


def test_positions_restart_in_every_document() -> None:
    document_ids = cases()["eod_reset_train/input_ids"].eq(5).long()
    document_ids = document_ids.cumsum(dim=1) - document_ids
    states = torch.zeros(2, 37, 64)
    view = view_of_documents(
        states, document_ids, config=_sdpa().config, attention_mask=None, position_ids=None, cache=None
    )
    # The official code computes these and then drops them.
    assert torch.equal(view.positions, cases()["eod_reset_train/reset_position_ids"])
    blocked = cases()["eod_reset_train/official_additive_mask_is_blocked"].bool()
    assert torch.equal(view.mask[:, 0], ~blocked)
