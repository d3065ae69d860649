"""Flan-T5's model class: transformers' T5, but with the output head that Flan-T5 really has."""

from collections.abc import Mapping
from functools import wraps
from typing import Any

import torch
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from ds_sft.families.flan_t5.flat import run_stack
from ds_sft.model.flat import Documents
from ds_sft.model.loss import LossHead, Targets, losses_at

_HEAD = "lm_head.weight"


class FlanT5(T5ForConditionalGeneration):
    """transformers' T5 that can be asked for losses instead of logits.

    Args:
        config: Shape of the model.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        # The very head that T5 made, with its weight, its tie and its partitions; a LossHead has nothing more.
        self.lm_head.__class__ = LossHead

    @wraps(T5ForConditionalGeneration.forward)
    def forward(self, *args: Any, targets: Targets | None = None, **kwargs: Any) -> Any:  # type: ignore[override]  # it is wrapped
        """Do what transformers' T5 does, or compare some decoder positions with targets.

        Args:
            *args: As transformers takes them.
            targets: What some positions must foretell; with them there are losses and no logits.
            **kwargs: As transformers takes them; with targets, those of a batch. For a flat batch, whose rows are
                documents one behind the other, `documents` and `decoder_documents`.

        Returns:
            As transformers gives it; or the losses at `targets`.
        """
        if targets is None:
            return super().forward(*args, **kwargs)
        return losses_at(targets, states=self._final_states(**kwargs), head=self.lm_head)

    def _final_states(
        self,
        *,
        input_ids: torch.Tensor,
        decoder_input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        documents: Documents | None = None,
        decoder_documents: Documents | None = None,
        use_cache: bool = False,
    ) -> torch.Tensor:
        """Give what the head is given, shape [B, T, H]."""
        if documents is not None and decoder_documents is not None:
            encoded = run_stack(self.encoder, input_ids, documents)
            states = run_stack(self.decoder, decoder_input_ids, decoder_documents, encoded=encoded, sources=documents)
        else:
            encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            states = self.decoder(
                input_ids=decoder_input_ids,
                encoder_hidden_states=encoded,
                encoder_attention_mask=attention_mask,
                use_cache=use_cache,
            ).last_hidden_state
        return states * self.model_dim**-0.5 if self.config.scale_decoder_outputs else states


class UntiedT5(FlanT5):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """T5 with an output head of its own, as Flan-T5 and T5 v1.1 have.

    transformers 5 sets `tie_word_embeddings` on every T5 (configuration_t5.py), so the trained head is lost when the
    vocabulary is resized, and under ZeRO-3 already when the model is loaded. Here only the input embeddings are shared.
    """

    _tied_weights_keys = {  # noqa: RUF012  # transformers declares it so
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    }


def model_class(config: Mapping[str, Any], stored_names: frozenset[str]) -> type[PreTrainedModel]:
    """Pick the class whose head is tied exactly as the checkpoint's is.

    Args:
        config: Content of config.json. `tie_word_embeddings: false` means a head of its own; transformers 5 overwrites
            that with true and keeps `scale_decoder_outputs: false` instead, and then the stored names decide.
        stored_names: Names of the stored weights; empty where only reading the whole file would tell.

    Returns:
        `UntiedT5`, or the tied `FlanT5`.
    """
    is_untied = config.get("tie_word_embeddings") is False
    was_untied = config.get("scale_decoder_outputs") is False and _HEAD in stored_names
    return UntiedT5 if is_untied or was_untied else FlanT5


def published_config(model: PreTrainedModel, config: dict[str, Any]) -> dict[str, Any]:
    """Make config.json say what was trained, for this and for older transformers.

    Args:
        model: The trained model.
        config: What transformers would write: always tied.

    Returns:
        The same with the true tying and the public class name.
    """
    return config | {
        "architectures": ["T5ForConditionalGeneration"],
        "tie_word_embeddings": not isinstance(model, UntiedT5),
    }
