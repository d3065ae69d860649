"""Documents that share their beginnings: where their tokens are, and attention along their branches."""

import pytest
import torch

from ds_sft.model.flat import documents_of
from ds_sft.model.trees import attend_in_trees, trees_of
from tests.flat import CPU

OFFSETS, SHARED = torch.tensor([0, 4, 8, 10, 12]), torch.tensor([0, 3, 1, 0])
PATHS = [[0, 1, 2, 3], [0, 1, 2, 4], [0, 5], [6, 7]]
"""Places of the tokens of each document, by hand."""


def test_tokens_have_places_positions_and_parents() -> None:
    trees = trees_of(OFFSETS, SHARED, device=CPU)
    assert trees.places.tolist() == [place for path in PATHS for place in path]
    assert trees.stored.offsets == (0, 4, 5, 6, 8)
    assert trees.positions.tolist() == [[0, 1, 2, 3, 3, 1, 0, 1]]
    assert (trees.firsts.tolist(), trees.parents.tolist()) == ([4, 5], [2, 0])


def test_a_branch_of_a_branch_goes_back_to_the_trunk() -> None:
    trees = trees_of(torch.tensor([0, 4, 9, 13]), torch.tensor([0, 2, 3]), device=CPU)
    assert trees.places.tolist() == [*[0, 1, 2, 3], *[0, 1, 4, 5, 6], *[0, 1, 4, 7]]
    assert (trees.firsts.tolist(), trees.parents.tolist()) == ([4, 7], [1, 4])


@pytest.mark.parametrize("shared", [[1, 0, 0, 0], [0, 5, 0, 0], [0, 4, 0, 0], [0, 0, 2, 0], [0, -1, 0, 0], [0, 1]])
def test_more_than_the_document_before_has_or_all_of_its_own_cannot_be_shared(shared: list[int]) -> None:
    with pytest.raises(ValueError, match="shared: "):
        trees_of(OFFSETS, torch.tensor(shared), device=CPU)


def test_attention_sees_what_comes_before_in_the_own_document_alone() -> None:
    random = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 8, 4, generator=random, dtype=torch.double)
    found = attend_in_trees(query, key, value, trees=trees_of(OFFSETS, SHARED, device=CPU), scale=0.3)
    for head in range(2):
        for path in PATHS:
            for depth, place in enumerate(path):
                scores = key[0, head, path[: depth + 1]] @ query[0, head, place] * 0.3
                wanted = scores.softmax(0) @ value[0, head, path[: depth + 1]]
                torch.testing.assert_close(found[0, place, head], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.gpu
def test_the_kernel_for_all_branches_gives_what_one_for_each_gives() -> None:
    device = torch.device("cuda")
    parts = [torch.randn(1, 2, 8, 64, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    wide = [part.detach().float().requires_grad_() for part in parts]
    trees = trees_of(OFFSETS, SHARED, device=device)
    found, wanted = (attend_in_trees(*some, trees=trees, scale=0.125) for some in (parts, wide))
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)
    slopes, wide_slopes = (
        torch.autograd.grad(one.float().square().sum(), of) for one, of in ((found, parts), (wanted, wide))
    )
    for slope, wide_slope in zip(slopes, wide_slopes, strict=True):
        torch.testing.assert_close(slope.float(), wide_slope, rtol=5e-2, atol=5e-2)


def test_documents_that_share_nothing_are_a_flat_batch() -> None:
    trees = trees_of(OFFSETS, torch.zeros(4, dtype=torch.long), device=CPU)
    assert trees.stored.offsets == documents_of(OFFSETS, device=CPU).offsets
    assert trees.places.tolist() == list(range(12))
    assert trees.firsts.numel() == 0
