"""The head is tied exactly as the checkpoint's is."""

import pytest
import torch
from torch.nn import functional
from transformers import T5Config

from ds_sft.families.flan_t5.modeling import FlanT5, UntiedT5, model_class, published_config
from ds_sft.model.loss import targets_of

HEAD = frozenset({"shared.weight", "lm_head.weight"})
NO_HEAD = frozenset({"shared.weight"})
CASES = [
    pytest.param({"tie_word_embeddings": False}, HEAD, UntiedT5, id="Flan-T5 from the hub"),
    pytest.param({"tie_word_embeddings": False}, NO_HEAD, UntiedT5, id="Flan-T5 without its head must not be tied"),
    pytest.param({"tie_word_embeddings": False}, frozenset(), UntiedT5, id="pickled Flan-T5"),
    pytest.param(
        {"tie_word_embeddings": True, "scale_decoder_outputs": False}, HEAD, UntiedT5, id="saved by transformers 5"
    ),
    pytest.param(
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},
        NO_HEAD,
        FlanT5,
        id="its head lost by transformers 5",
    ),
    pytest.param({}, NO_HEAD, FlanT5, id="T5 of the first generation"),
    pytest.param({"tie_word_embeddings": True}, HEAD, FlanT5, id="tied, head stored twice"),
]


@pytest.mark.parametrize(("config", "names", "expected"), CASES)
def test_the_class_follows_config_and_stored_names(
    config: dict[str, object], names: frozenset[str], expected: type[object]
) -> None:
    assert model_class(config, names) is expected


@pytest.mark.parametrize(("kind", "is_tied"), [(UntiedT5, False), (FlanT5, True)])
def test_the_published_config_says_how_the_head_was_trained(kind: type[FlanT5], is_tied: bool) -> None:
    model = kind(T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2))
    published = published_config(model, {"tie_word_embeddings": not is_tied, "architectures": ["UntiedT5"], "d_ff": 4})
    assert published == {
        "tie_word_embeddings": is_tied,
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 4,
    }
    assert (model.lm_head.weight is model.shared.weight) is is_tied


@pytest.mark.parametrize("kind", [FlanT5, UntiedT5])
@pytest.mark.parametrize("scales", [False, True])
def test_losses_and_gradients_at_targets_are_those_of_transformers_logits(kind: type[FlanT5], scales: bool) -> None:
    torch.manual_seed(4)
    shape = {"vocab_size": 19, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "dropout_rate": 0}
    model = kind(T5Config.from_dict({**shape, "tie_word_embeddings": scales})).double()
    assert model.config.scale_decoder_outputs is scales
    ids, answers = torch.randint(19, (2, 7)), torch.randint(19, (2, 5))
    labels = answers.masked_fill(torch.rand(2, 5) < 0.4, -100)
    given = {"input_ids": ids, "attention_mask": (torch.rand(2, 7) < 0.8).long(), "decoder_input_ids": answers}
    logits = model(**given).logits
    whole = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    total = model(**given, targets=targets_of(labels)).loss
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=0)
    weights = list(model.parameters())
    wanted = torch.autograd.grad(whole, weights)
    torch.testing.assert_close(torch.autograd.grad(total, weights), wanted, rtol=1e-11, atol=1e-13)
