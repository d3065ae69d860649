"""Documents of a flat batch: where they lie, and attention that goes from one to the next."""

import pytest
import torch

from ds_sft.model.flat import attend_in_documents, documents_of
from tests.flat import CPU

OFFSETS = torch.tensor([0, 3, 4, 9])
KEY_OFFSETS = torch.tensor([0, 2, 6, 7])


def test_every_token_has_the_number_of_its_document() -> None:
    documents = documents_of(OFFSETS, device=CPU)
    assert documents.ids().tolist() == [[0, 0, 0, 1, 2, 2, 2, 2, 2]]
    assert (documents.lengths, documents.longest, documents.offsets) == ([3, 1, 5], 5, (0, 3, 4, 9))
    assert documents.boundaries.dtype == torch.int32


@pytest.mark.parametrize("offsets", [[0], [1, 2], [0, 3, 3, 4], [0, 4, 2]])
def test_offsets_that_do_not_go_up_from_zero_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets: must begin with 0 and go up, at least once, but are"):
        documents_of(torch.tensor(offsets), device=CPU)


def test_ids_of_another_shape_are_refused() -> None:
    documents = documents_of(OFFSETS, device=CPU)
    documents.refuse_other_shape(torch.zeros(1, 9))
    for shape in ((1, 8), (2, 9), (9,)):
        with pytest.raises(ValueError, match=r"must have the shape \[1, 9\] that the offsets end with, but have"):
            documents.refuse_other_shape(torch.zeros(shape))


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_stays_inside_each_document(is_causal: bool) -> None:
    random = torch.Generator().manual_seed(0)
    key_offsets = OFFSETS if is_causal else KEY_OFFSETS
    num_keys = int(key_offsets[-1])
    query = torch.randn(1, 2, 9, 4, generator=random, dtype=torch.double)
    key, value = torch.randn(2, 1, 2, num_keys, 4, generator=random, dtype=torch.double)
    found = attend_in_documents(
        *(query, key, value),
        queries=documents_of(OFFSETS, device=CPU),
        keys=documents_of(key_offsets, device=CPU),
        is_causal=is_causal,
        scale=0.3,
    )
    for head in range(2):
        for place, document in enumerate([0, 0, 0, 1, 2, 2, 2, 2, 2]):
            seen = range(int(key_offsets[document]), place + 1 if is_causal else int(key_offsets[document + 1]))
            scores = torch.stack([query[0, head, place] @ key[0, head, other] * 0.3 for other in seen])
            wanted = scores.softmax(0) @ value[0, head, list(seen)]
            torch.testing.assert_close(found[0, place, head], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.gpu
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_kernel_for_all_documents_gives_what_one_for_each_gives(is_causal: bool) -> None:
    device = torch.device("cuda")
    parts = [torch.randn(1, 2, 9, 64, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    wide = [part.detach().float().requires_grad_() for part in parts]
    documents = documents_of(OFFSETS, device=device)
    found, wanted = (
        attend_in_documents(*some, queries=documents, keys=documents, is_causal=is_causal, scale=0.125)
        for some in (parts, wide)
    )
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)
    slopes, wide_slopes = (
        torch.autograd.grad(one.float().square().sum(), of) for one, of in ((found, parts), (wanted, wide))
    )
    for slope, wide_slope in zip(slopes, wide_slopes, strict=True):
        torch.testing.assert_close(slope.float(), wide_slope, rtol=5e-2, atol=5e-2)
