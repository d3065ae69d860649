"""Official config files are read, keys and all, and describe models of the published sizes."""

import json
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from tests.families.yuan2.native.golden import GOLDEN

OFFICIAL: dict[str, Any] = json.loads((GOLDEN / "config.json").read_text())
LARGE = {"hidden_size": 8192, "intermediate_size": 32768, "num_attention_heads": 64, "max_position_embeddings": 4096}
SIZES = [
    pytest.param({}, 2_088_724_480, id="2B"),
    pytest.param(LARGE | {"num_hidden_layers": 42}, 51_842_105_344, id="51B"),
    pytest.param(LARGE | {"num_hidden_layers": 84}, 102_577_954_816, id="102B"),
]


@pytest.mark.parametrize(("changes", "num_parameters"), SIZES)
def test_the_published_sizes_have_the_published_numbers_of_parameters(
    changes: dict[str, Any], num_parameters: int
) -> None:
    with torch.device("meta"):
        model = Yuan2ForCausalLM(Yuan2Config(**changes))
    assert sum(weight.numel() for weight in model.parameters()) == num_parameters


def test_every_key_of_an_official_file_is_accepted_and_kept() -> None:
    config = json.loads(Yuan2Config.from_dict(OFFICIAL).to_json_string(use_diff=False))
    renamed = {"torch_dtype"}
    assert {key: config.get(key) for key in OFFICIAL if key not in renamed} == {
        key: value for key, value in OFFICIAL.items() if key not in renamed
    }
    assert config["dtype"] == "float32"


def test_a_file_without_tying_is_tied_and_the_base_is_the_official_one() -> None:
    config = Yuan2Config.from_dict({key: value for key, value in OFFICIAL.items() if key != "tie_word_embeddings"})
    assert config.tie_word_embeddings is True
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_attention_heads": 5}, "even multiple of num_attention_heads, but is 64 for 5 heads"),
        ({"use_moe": True}, "mixture of experts"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"rope_scaling": {"type": "linear", "factor": "much"}}, "factor"),
    ],
)
def test_a_config_that_describes_no_dense_yuan2_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises((StrictDataclassError, TypeError), match=told):
        Yuan2Config.from_dict(OFFICIAL | changes)
