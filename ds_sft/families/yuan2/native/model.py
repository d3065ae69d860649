"""Yuan2 whole: the decoder, and the decoder with its language-modelling head."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from ds_sft.errors import ModelError, raise_together
from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.documents import View, view_of_documents, view_of_rows
from ds_sft.families.yuan2.native.filtering import Yuan2PairConvolution
from ds_sft.families.yuan2.native.layers import Yuan2Attention, Yuan2DecoderLayer
from ds_sft.families.yuan2.native.norm import Yuan2RMSNorm
from ds_sft.families.yuan2.native.rotary import Yuan2RotaryEmbedding
from ds_sft.families.yuan2.native.rules import config_faults
from ds_sft.families.yuan2.native.trees import view_of_trees
from ds_sft.model.flat import Documents
from ds_sft.model.folder import read_json
from ds_sft.model.loss import LossHead, TargetLosses, Targets, losses_at
from ds_sft.model.trees import Trees
from ds_sft.model.weights import differing_ties, refuse_loading_faults, stored_shapes, weight_faults

_FOREIGN = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "document_id", "offsets"}
"""Other ways to tell packed documents apart, which would keep the attention to itself and leak through the filters."""


def _raw_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return read_json(file) if file.is_file() else {}


class Yuan2PreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """What both models share: how weights are made, read and checked."""

    config_class = Yuan2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Yuan2DecoderLayer"]  # noqa: RUF012  # transformers declares it so
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012  # transformers declares it so
    # The official code stores its frequencies in every layer; ours are computed.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012  # transformers declares it so
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": Yuan2DecoderLayer, "attentions": Yuan2Attention}  # noqa: RUF012  # transformers declares it so

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as transformers does, but let no weight be missing, left over or read from elsewhere.

        Args:
            pretrained_model_name_or_path: A folder, or a name on the hub.
            *args: As transformers takes them.
            **kwargs: As transformers takes them.

        Returns:
            The model; with `output_loading_info=True` also what transformers found.

        Raises:
            ModelError: When files are broken, lie outside of the folder, or do not hold the weights of the model.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        folder = None if pretrained_model_name_or_path is None else Path(pretrained_model_name_or_path)
        if folder is not None and folder.is_dir():
            kwargs |= cls._refuse_faults_of(folder, kwargs.get("config"))
        # Never from the folder, whatever the caller says: this class needs no code of anybody else's.
        kwargs["trust_remote_code"] = False
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        refuse_loading_faults(info, where=str(pretrained_model_name_or_path))
        head, table = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and head.weight is not table.weight:
            # transformers leaves a head untied whose stored values differ; the config must not say otherwise.
            model.config.tie_word_embeddings = False
        return (model, info) if wants_info else model

    @classmethod
    def _refuse_faults_of(cls, folder: Path, config: Yuan2Config | None) -> dict[str, Any]:
        """Tell broken, foreign and wrong weights by name before transformers reads any.

        A head that is stored with values of its own is untied here: under ZeRO-3 transformers ties it without a word.
        """
        shapes = stored_shapes(folder)
        raise_together([ModelError(f"{folder}/config.json: {line}") for line in config_faults(_raw_config(folder))])
        if cls is not Yuan2ForCausalLM:
            # The decoder alone may be read from a checkpoint with a head, whose weights have longer names.
            return {}
        config = config or Yuan2Config.from_pretrained(folder)
        with torch.device("meta"):
            empty = cls(config)
        raise_together(weight_faults(empty, shapes, where=str(folder)))
        if not differing_ties(folder, empty, shapes):
            return {}
        config.tie_word_embeddings = False
        return {"config": config}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Give a new module its first weights: torch's own for the convolutions, as in the official code."""
        if isinstance(module, Yuan2PairConvolution):
            bound = module.initial_bound
            initialization.uniform_(module.weight, -bound, bound)
            initialization.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]  # transformers leaves it untyped


class Yuan2Model(Yuan2PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Embeddings, layers and final norm.

    Args:
        config: Shape of the model.
    """

    _keys_to_ignore_on_load_unexpected = [*Yuan2PreTrainedModel._keys_to_ignore_on_load_unexpected, r"^lm_head\."]  # noqa: RUF012, SLF001  # as above

    def __init__(self, config: Yuan2Config) -> None:
        super().__init__(config)
        # As in the official code, the row of the padding token gets no gradient from the inputs.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([Yuan2DecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = Yuan2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Yuan2RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]  # transformers leaves it untyped

    @capture_outputs  # type: ignore[untyped-decorator]  # transformers leaves it untyped
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        document_ids: torch.Tensor | None = None,
        documents: Documents | Trees | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Give the final states.

        Args:
            input_ids: Token ids, shape [B, T].
            attention_mask: 1 on tokens and 0 on padding, for cached and new tokens, shape [B, past + T].
            position_ids: Shape [B, T]; counted where not given, without padding.
            past_key_values: Keys, values and filter states of earlier tokens.
            inputs_embeds: Instead of `input_ids`, shape [B, T, H].
            use_cache: Give a cache back; the config decides where not given, but never with `document_ids` or under
                gradient checkpointing.
            document_ids: For packed rows: equal inside a document, -1 on padding, shape [B, T]. Attention and filters
                stay inside documents and positions restart.
            documents: The same for one row that has no padding; or how documents share their beginnings.
            **kwargs: For the attention implementation.

        Returns:
            `last_hidden_state` [B, T, H] and `past_key_values`.

        Raises:
            ValueError: When the arguments contradict each other.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: exactly one must be given, but both or none are; drop one")
        foreign = sorted(_FOREIGN & set(kwargs))
        if foreign:
            raise ValueError(
                f"{', '.join(foreign)}: tells nothing to the filters, but is given; give document_ids instead"
            )
        states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        packed = document_ids if documents is None else documents
        cache = self._cache(past_key_values, use_cache, has_documents=packed is not None)
        given = {"config": self.config, "attention_mask": attention_mask, "position_ids": position_ids, "cache": cache}
        view_of: Any = view_of_trees if isinstance(packed, Trees) else view_of_documents
        view = view_of_rows(states, **given) if packed is None else view_of(states, packed, **given)
        states = self._run(states, view, cache, kwargs)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=cache)

    def _cache(self, given: Cache | None, use_cache: bool | None, *, has_documents: bool) -> Cache | None:
        if has_documents and use_cache:
            raise ValueError("document_ids: cannot go with a cache, but use_cache is True; pass use_cache=False")
        if given is not None and not has_documents and len(given.layers) < self.config.num_hidden_layers:
            raise ValueError(
                f"past_key_values: must have {self.config.num_hidden_layers} layers, but has {len(given.layers)}; make "
                "it with DynamicCache(config=model.config)"
            )
        is_checkpointing = self.gradient_checkpointing and self.training
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not has_documents
        if given is None and use_cache and not is_checkpointing:
            return DynamicCache(config=self.config)
        return given

    def _run(self, states: torch.Tensor, view: View, cache: Cache | None, more: dict[str, Any]) -> torch.Tensor:
        position_embeddings = self.rotary_emb(states, view.positions)
        for layer in self.layers:
            states = layer(
                states,
                attention_mask=view.mask,
                position_embeddings=position_embeddings,
                is_token=view.is_token,
                goes_on=view.goes_on,
                branches=view.branches,
                past_key_values=cache,
                **view.more,
                **more,
            )
        normed: torch.Tensor = self.norm(states)
        return normed


class Yuan2ForCausalLM(Yuan2PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """The decoder with a head that scores the next token.

    Args:
        config: Shape of the model.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  # transformers declares it so

    def __init__(self, config: Yuan2Config) -> None:
        super().__init__(config)
        self.model = Yuan2Model(config)
        self.lm_head = LossHead(config.hidden_size, config.vocab_size)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers leaves it untyped

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers leaves it untyped
    def forward(  # noqa: PLR0913, PLR0917  # transformers' interface
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        document_ids: torch.Tensor | None = None,
        targets: Targets | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | TargetLosses:
        """Score the next token at every position, or compare some positions with targets.

        Args:
            input_ids: As in `Yuan2Model.forward`.
            attention_mask: As in `Yuan2Model.forward`.
            position_ids: As in `Yuan2Model.forward`.
            past_key_values: As in `Yuan2Model.forward`.
            inputs_embeds: As in `Yuan2Model.forward`.
            labels: Target ids, not shifted, -100 without loss, shape [B, T]. They are taken as they are: give the first
                token of a packed document -100, or the last token of the document before must foretell it.
            use_cache: As in `Yuan2Model.forward`.
            logits_to_keep: Score the last so many positions only, or those of an index; 0 for all.
            document_ids: As in `Yuan2Model.forward`.
            targets: What some positions must foretell; with them there are losses and no logits.
            **kwargs: For the attention implementation and the loss function.

        Returns:
            `loss` (mean over labels, with labels), `logits` [B, T, V], `past_key_values`; or the losses at `targets`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            document_ids=document_ids,
            **kwargs,
        )
        if targets is not None:
            return losses_at(targets, states=outputs.last_hidden_state, head=self.lm_head)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def register(auto: ModuleType) -> None:
    """Let transformers' auto models load the native classes.

    Args:
        auto: `transformers.models.auto.modeling_auto`.
    """
    auto.AutoModel.register(Yuan2Config, Yuan2Model, exist_ok=True)
    auto.AutoModelForCausalLM.register(Yuan2Config, Yuan2ForCausalLM, exist_ok=True)
