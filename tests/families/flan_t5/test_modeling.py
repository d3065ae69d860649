"""The head is tied exactly as the checkpoint's is."""

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from ds_sft.families.flan_t5.modeling import UntiedT5, model_class, published_config

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
        T5ForConditionalGeneration,
        id="its head lost by transformers 5",
    ),
    pytest.param({}, NO_HEAD, T5ForConditionalGeneration, id="T5 of the first generation"),
    pytest.param({"tie_word_embeddings": True}, HEAD, T5ForConditionalGeneration, id="tied, head stored twice"),
]


@pytest.mark.parametrize(("config", "names", "expected"), CASES)
def test_the_class_follows_config_and_stored_names(
    config: dict[str, object], names: frozenset[str], expected: type[object]
) -> None:
    assert model_class(config, names) is expected


@pytest.mark.parametrize(("kind", "is_tied"), [(UntiedT5, False), (T5ForConditionalGeneration, True)])
def test_the_published_config_says_how_the_head_was_trained(kind: type[UntiedT5], is_tied: bool) -> None:
    model = kind(T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2))
    published = published_config(model, {"tie_word_embeddings": not is_tied, "architectures": ["UntiedT5"], "d_ff": 4})
    assert published == {
        "tie_word_embeddings": is_tied,
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 4,
    }
    assert (model.lm_head.weight is model.shared.weight) is is_tied
