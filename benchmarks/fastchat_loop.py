"""FastChat's way with Yuan2, made again from a description of its work: the baseline of the benchmark.

The released model attends eagerly with a softmax in fp32, filters by Conv2d, gives the logits of every position in fp32
and copies them shifted. Rotary angles, which it makes anew in each layer, are made once here: in its favour.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutputWithPast

from ds_sft.contracts import IGNORE_INDEX
from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.filtering import Yuan2LocalizedFiltering
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM


class Conv2dFiltering(Yuan2LocalizedFiltering):
    """The filter by two Conv2d kernels over [B, H, T, 1], padded by a token in front."""

    def forward(self, states: torch.Tensor, **_more: Any) -> torch.Tensor:
        """Filter.

        Args:
            states: Shape [B, T, H].
            **_more: Unused: padding on the right reaches no token.

        Returns:
            Shape [B, T, H].
        """
        image = states.transpose(1, 2).unsqueeze(-1)
        for one in (self.conv1, self.conv2):
            image = functional.conv2d(image, one.weight, one.bias, padding=(1, 0))[:, :, : states.shape[1]]
        filtered: torch.Tensor = self.output_layernorm(image.squeeze(-1).transpose(1, 2) + states)
        return filtered


class FastChatYuan2(Yuan2ForCausalLM):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Yuan2 with the same weights and the work of the released code.

    Args:
        config: Shape of the model.
    """

    def __init__(self, config: Yuan2Config) -> None:
        super().__init__(config)
        self.set_attn_implementation("eager")
        for layer in self.model.layers:
            attention: Any = layer.self_attn
            attention.lf_gate.__class__ = Conv2dFiltering

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> CausalLMOutputWithPast:
        """Give the mean loss.

        Args:
            input_ids: Shape [B, T].
            attention_mask: 1 on tokens and 0 on padding, shape [B, T].
            labels: Not shifted, shape [B, T].

        Returns:
            `loss` and `logits` [B, T, V].
        """
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        logits = self.lm_head(states).float()
        shifted, targets = logits[:, :-1].contiguous(), labels[:, 1:].contiguous()
        loss = functional.cross_entropy(shifted.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX)
        return CausalLMOutputWithPast(loss=loss, logits=logits)
