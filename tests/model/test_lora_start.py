"""How adapters begin: in fp32 where nothing keeps other copies, and at the directions of their layers' inputs."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import T5Config

from ds_sft.errors import ConfigError
from ds_sft.families import family_of
from ds_sft.families.flan_t5.modeling import UntiedT5
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from ds_sft.model.lora import Adapters, Base, attach_adapters
from ds_sft.model.lora_start import begin_at_inputs

RANK = 2


def _adapted() -> Adapters:
    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    family = family_of({"model_type": "t5"}, folder=Path("unused"))
    lora = LoraConfig(r=RANK, target_modules=["q"], lora_dropout=0.0)
    return attach_adapters(
        UntiedT5(config), lora, family=family, base=Base("x", [], is_as_stored=True), seed=1, holds_16_bits=False
    )


def _inputs(num_tokens: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(num_tokens)[None] % 40
    return {"input_ids": ids, "decoder_input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_first_matrices_hold_the_directions_in_which_inputs_vary_most() -> None:
    adapters, seen = _adapted(), list[torch.Tensor]()
    layer = adapters.model.get_submodule("base_model.model.decoder.block.0.layer.1.EncDecAttention.q")
    layer.register_forward_pre_hook(lambda _layer, given: seen.append(given[0][0].detach()))
    before = adapters.model(**_inputs(30))["logits"]
    begin_at_inputs(adapters, _inputs(30))
    _, _, directions = torch.linalg.svd(seen[-1] - seen[-1].mean(dim=0))
    weight = layer.get_parameter("lora_A.default.weight")
    # A direction has no sign: the projections onto both planes are the same.
    torch.testing.assert_close(weight.T @ weight, directions[:RANK].T @ directions[:RANK], atol=1e-4, rtol=0)
    assert adapters.model.training
    torch.testing.assert_close(adapters.model(**_inputs(30))["logits"], before)


def test_fewer_tokens_than_directions_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"lora_init: eva finds lora_r directions .* sees 2 tokens .* for rank 2"):
        begin_at_inputs(_adapted(), _inputs(2))


def test_without_deepspeed_all_that_trains_is_held_in_fp32() -> None:
    golden = Path(__file__).parents[1] / "golden" / "yuan2"
    model = Yuan2ForCausalLM.from_pretrained(golden, dtype=torch.bfloat16)
    base = Base("x", [3, 4], is_as_stored=True)
    lora = LoraConfig(r=RANK, target_modules=["q_proj"], bias="all")
    family = family_of({"model_type": "yuan"}, folder=golden)
    adapters = attach_adapters(model, lora, family=family, base=base, seed=1, holds_16_bits=False)
    dtypes = {name: weight.dtype for name, weight in adapters.tensors().items()}
    assert any(name.endswith(".bias") for name in dtypes)
    assert set(dtypes.values()) == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}
