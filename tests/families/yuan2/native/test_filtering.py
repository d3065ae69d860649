"""The filter is the official pair of Conv2d kernels, and it is cut at the same places in both."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ds_sft.families.yuan2.native.filtering import Yuan2LocalizedFiltering, Yuan2PairConvolution

WIDTH = 16


@pytest.fixture
def filtering() -> Yuan2LocalizedFiltering:
    """A filter with random weights, biases far from zero."""
    torch.manual_seed(5)
    module = Yuan2LocalizedFiltering(WIDTH, 0)
    for weight in module.parameters():
        nn.init.normal_(weight)
    return module.double()


def states(num_tokens: int = 7) -> torch.Tensor:
    return torch.randn(2, num_tokens, WIDTH, dtype=torch.double, generator=torch.Generator().manual_seed(2))


def as_published(module: Yuan2LocalizedFiltering, given: torch.Tensor) -> torch.Tensor:
    """Filter with Conv2d over [B, H, T, 1], padded by one token in front, as the official code does."""
    image = given.transpose(1, 2).unsqueeze(-1)
    for convolution in (module.conv1, module.conv2):
        image = functional.conv2d(image, convolution.weight, convolution.bias, padding=(1, 0))[:, :, : given.shape[1]]
    out = image.squeeze(-1).transpose(1, 2) + given
    return out * (out.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * module.output_layernorm.weight


def test_it_is_two_convolutions_a_residual_and_a_norm(filtering: Yuan2LocalizedFiltering) -> None:
    found = filtering(states(), is_token=None, goes_on=None, cache=None)
    # The norm computes in fp32 whatever it is given.
    torch.testing.assert_close(found, as_published(filtering, states()), rtol=1e-6, atol=1e-6)


def test_weights_keep_the_official_names_and_shapes() -> None:
    shapes = {name: list(weight.shape) for name, weight in Yuan2LocalizedFiltering(WIDTH, 0).named_parameters()}
    assert shapes == {
        "conv1.weight": [8, 16, 2, 1],
        "conv1.bias": [8],
        "conv2.weight": [16, 8, 2, 1],
        "conv2.bias": [16],
        "output_layernorm.weight": [16],
    }


def test_the_first_tap_is_for_the_token_before() -> None:
    convolution = Yuan2PairConvolution(1, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([10.0, 1.0]).view(1, 1, 2, 1))
        convolution.bias.fill_(0.5)
        found = convolution(torch.tensor([[[2.0]]]), torch.tensor([[[3.0]]]))
    assert found.item() == 10 * 2 + 3 + 0.5


def test_a_token_sees_two_tokens_back_and_none_ahead(filtering: Yuan2LocalizedFiltering) -> None:
    before = states()
    changed = before.clone()
    changed[:, 3] += 1
    found, other = (filtering(one, is_token=None, goes_on=None, cache=None) for one in (before, changed))
    differs = (found != other).any(-1).any(0)
    assert differs.tolist() == [False, False, False, True, True, True, False]


@pytest.mark.parametrize("cut", range(1, 7))
def test_both_convolutions_are_cut_where_a_document_starts(filtering: Yuan2LocalizedFiltering, cut: int) -> None:
    goes_on = torch.ones(2, 7, 1, dtype=torch.bool)
    goes_on[:, [0, cut]] = False
    found = filtering(states(), is_token=None, goes_on=goes_on, cache=None)
    alone = [as_published(filtering, piece) for piece in torch.split(states(), [cut, 7 - cut], dim=1)]
    torch.testing.assert_close(found, torch.cat(alone, dim=1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("padding", range(1, 6))
def test_padding_counts_as_nothing(filtering: Yuan2LocalizedFiltering, padding: int) -> None:
    is_token = torch.ones(2, 7, 1, dtype=torch.bool)
    is_token[:, :padding] = False
    found = filtering(states(), is_token=is_token, goes_on=None, cache=None)
    alone = as_published(filtering, states()[:, padding:])
    torch.testing.assert_close(found[:, padding:], alone, rtol=1e-6, atol=1e-6)
