"""Head and pieces make a file that safetensors reads, without a second copy of a tensor."""

import json
import struct

import pytest
import torch
from safetensors.torch import load

from ds_sft.errors import NumericsError
from ds_sft.save import tensors
from ds_sft.save.tensors import as_bytes, head, num_bytes, pieces, refuse_non_finite

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
FLOATS = [dtype for dtype in DTYPES if dtype.is_floating_point]


def file_of(named: dict[str, torch.Tensor]) -> bytes:
    """Put a file together as a writer does."""
    body = [bytes(as_bytes(piece)) for one in named.values() for piece in pieces(one, dtype=one.dtype)]
    return head(named) + b"".join(body)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("piece", [1, 3, 1 << 22])
def test_safetensors_reads_every_dtype_bit_equal(
    dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_PIECE", piece)
    table = torch.tensor([[0, 1, 2], [3, 4, 100]]).to(dtype)
    found = load(file_of({"table": table}))
    assert list(found) == ["table"]
    assert found["table"].dtype == dtype
    assert torch.equal(found["table"], table)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 1, 3)])
def test_safetensors_reads_every_shape(shape: tuple[int, ...]) -> None:
    table = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    found = load(file_of({"before": torch.ones(1, dtype=torch.int8), "table": table}))
    assert torch.equal(found["table"], table)
    assert torch.equal(found["before"], torch.ones(1, dtype=torch.int8))


def test_tensors_stand_in_the_given_order_behind_an_aligned_head() -> None:
    begun = head({"b": torch.zeros(3, dtype=torch.int16), "空": torch.zeros(2, 2), "a": torch.zeros(1)})
    (length,) = struct.unpack("<Q", begun[:8])
    assert len(begun) == 8 + length
    assert length % 8 == 0
    assert json.loads(begun[8:]) == {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "I16", "shape": [3], "data_offsets": [0, 6]},
        "空": {"dtype": "F32", "shape": [2, 2], "data_offsets": [6, 22]},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [22, 26]},
    }


def test_a_head_needs_no_storage() -> None:
    living = torch.zeros(3, 4, dtype=torch.bfloat16)
    assert head({"a": torch.empty_like(living, device="meta")}) == head({"a": living})
    assert num_bytes(torch.empty_like(living, device="meta")) == 24


def test_pieces_are_flat_in_order_and_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_PIECE", 4)
    across = torch.arange(6, dtype=torch.float32).view(2, 3).t()
    found = list(pieces(across, dtype=torch.bfloat16))
    assert [piece.tolist() for piece in found] == [[0, 3, 1, 4], [2, 5]]
    assert {piece.dtype for piece in found} == {torch.bfloat16}


def test_a_piece_that_needs_no_conversion_is_not_copied() -> None:
    table = torch.zeros(2, 3, requires_grad=True)
    (piece,) = pieces(table, dtype=torch.float32)
    as_bytes(piece)[0] = 255
    assert table.detach().view(torch.uint8).flatten()[0] == 255


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused_by_name(dtype: torch.dtype, number: float) -> None:
    with pytest.raises(NumericsError) as caught:
        refuse_non_finite("lm_head.weight", torch.tensor([0.0, number, 1.0], dtype=dtype))
    assert caught.value.exit_code == 65
    assert str(caught.value) == (
        "lm_head.weight: must be finite numbers, but holds NaN or infinity, so it is not saved; go on from the last "
        "checkpoint with a lower --learning_rate"
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_numbers_of_every_dtype_pass(dtype: torch.dtype) -> None:
    refuse_non_finite("a", torch.tensor([0, 1, 100]).to(dtype))
    refuse_non_finite("a", torch.zeros(0, dtype=dtype))
