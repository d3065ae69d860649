"""The nouns every room speaks in; this module imports nothing heavy, so that looking at data never loads torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ds_sft.shapes import Stack, Weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label that the loss must not look at."""

Precision = Literal["fp32", "bf16", "fp16"]
LossMode = Literal["last_response", "split_example", "efficient"]
LayoutName = Literal["native", "fastchat"]


@dataclass(frozen=True)
class Turn:
    """One message as it stands in the data file: who speaks and what, both unchecked."""

    role: object
    text: object


@dataclass(frozen=True)
class Conversation:
    """One record of a data file, and where it came from.

    Args:
        turns: The messages in file order.
        place: `file:record 12` or `file:line 12`, for messages to the user.
        identity: The record's own `id`, or an empty string.
    """

    turns: tuple[Turn, ...]
    place: str
    identity: str = ""


@dataclass(frozen=True)
class Exchange:
    """One question and its answer, both byte for byte as the user wrote them."""

    question: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """A conversation after normalisation: an optional system text and at least one exchange."""

    system: str | None
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True)
class Question:
    """What a model is asked: the question, and all that was said before it.

    Args:
        system: The system text, if there is one.
        history: Earlier exchanges.
        text: The question, byte for byte.
    """

    system: str | None
    history: tuple[Exchange, ...]
    text: str


@dataclass(frozen=True)
class Rejection:
    """Why a whole conversation gives nothing.

    Args:
        reason: `unknown_role`, `bad_value`, `system_not_first` or `no_exchange`; counted under this name.
        detail: What is at fault, in words.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Segment:
    """A stretch of one sequence.

    Args:
        kind: `text` is literal (never a control token, whatever it reads); `control` is the name of one control token.
        text: The literal text, or the control token.
        loss: Whether these tokens are supervised.
    """

    kind: Literal["text", "control"]
    text: str
    loss: bool = False


@dataclass(frozen=True)
class Draft:
    """One training sample before tokenisation.

    Args:
        target: What the decoder writes; some of it is supervised.
        source: What the encoder reads; empty for decoder-only models.
    """

    target: tuple[Segment, ...]
    source: tuple[Segment, ...] = ()


@dataclass(frozen=True)
class LayoutOptions:
    """How a dialogue is to become samples.

    Args:
        max_tokens: Most tokens of one sequence; source and target have this limit each.
        loss_mode: Which answers are supervised, for families with a choice.
        name: `fastchat` gives the token layout of FastChat's efficient loss, for families that have it.
    """

    max_tokens: int
    loss_mode: LossMode = "efficient"
    name: LayoutName = "native"


@dataclass
class Layout:
    """What one dialogue became: its samples, and what had to be dropped to make them fit."""

    drafts: list[Draft] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Prompt:
    """What a model reads before it answers: the tokens that stand before the answer in a training sample.

    Args:
        segments: In order; empty for a question that does not fit even alone.
        num_dropped: Oldest exchanges that were left out to make it fit.
    """

    segments: tuple[Segment, ...]
    num_dropped: int


@dataclass(frozen=True)
class Example:
    """One tokenised sample.

    Args:
        labels: Target ids, `IGNORE_INDEX` where the loss must not look, length [T].
        input_ids: Ids the encoder reads, length [S]; for decoder-only models the ids behind `labels`, length [T].
    """

    input_ids: Sequence[int]
    labels: Sequence[int]


class EncodeText(Protocol):
    """A family's way from text to ids in which nothing is a control token, whatever the text spells."""

    def __call__(self, tokenizer: PreTrainedTokenizerBase, text: str, *, is_continued: bool) -> list[int]:
        """Give the ids of a stretch of text.

        Args:
            tokenizer: From the card's `load_tokenizer`.
            text: Any text.
            is_continued: Whether other text of the same sequence stands right before it. A tokenizer that puts a
                prefix in front of a text must not do so then.

        Returns:
            The ids.
        """
        ...


Measure = Callable[[Sequence[Segment]], int]
"""Gives the number of tokens of some segments."""


@dataclass(frozen=True)
class ModelShape:
    """A model as config.json tells it: enough to count parameters, operations and memory.

    Args:
        weights: All of it, a tied head left out; the table that it shares is read by `supervised` instead.
        width: Of the states between layers.
        vocab_size: Scores of the head.
        stacks: Its layers.
        source_pair: Multiplications for two tokens of a source that see each other, in all layers: score and mixing.
        target_pair: The same for a token of a target and one before it, or itself.
        cross_pair: The same for a token of a target and one of its source.
    """

    weights: tuple[Weight, ...]
    width: int
    vocab_size: int
    stacks: tuple[Stack, ...]
    target_pair: int
    source_pair: int = 0
    cross_pair: int = 0


@dataclass(frozen=True)
class Work:
    """What is to be computed for some documents, as sums over them; it can be added up.

    Args:
        source_tokens: Tokens that encoders read.
        target_tokens: All others.
        supervised_tokens: Those of them that the head scores.
        source_pairs: Pairs of tokens in each source, S x S.
        target_pairs: Pairs that causal attention sees in each target, T x (T + 1) / 2.
        cross_pairs: S x T.
    """

    source_tokens: int
    target_tokens: int
    supervised_tokens: int
    source_pairs: int
    target_pairs: int
    cross_pairs: int

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Family:
    """THE CARD: all that the rest of the house may know about one kind of model.

    Args:
        name: Folder name below `families/`.
        model_types: The `model_type` values of config.json that belong to it.
        is_encoder_decoder: Whether questions go to an encoder of their own.
        refused_precisions: Precision -> why this family must not be trained in it.
        attentions: The attention implementations of transformers to choose from.
        sharing_attentions: Those of them with which samples may share what they begin with; only where a token's states
            depend on the tokens before it alone.
        loss_modes: The loss modes to choose from; empty when there is only one way.
        special_tokens: Role -> token, as `add_special_tokens` takes them.
        other_tokens: Ordinary tokens to add, in their fixed order.
        lay_out: Turns a dialogue into samples of at most so many tokens.
        lay_out_prompt: Turns a question into what stands before its answer in a sample, of at most so many tokens.
        answer_end: What training puts behind every answer's text; an answer is read without it.
        config_faults: Tells what in config.json this family cannot be, one line each; looks at the content only.
        shape_of: Tells weights and layers of the model that config.json's content describes.
        published_configs: Name on the hub, in lower case -> what its config.json says of the shape.
        fit_context: Rewrites config.json for sequences of at most so many tokens, where the positions must be scaled.
        auto_modules: Name of a module below transformers' `models.auto` -> full name of our module whose `register`
            takes the former and makes its auto classes know the family.
        load_tokenizer: Reads the tokenizer of a model folder.
        encode_text: Gives the ids of text in which nothing is a control token, whatever it reads.
        model_class: Picks the model class from config.json's content and the names of the stored weights.
        published_config: Rewrites config.json so that every reader of the format sees what was trained.
        lora_targets: Linear layers that get an adapter unless the user names others.
        kept_in_16_bits: Linear layers that QLoRA does not quantise.
        write_tiny_checkpoint: Makes a small random checkpoint with a tokenizer trained on the given texts.
    """

    name: str
    model_types: tuple[str, ...]
    is_encoder_decoder: bool
    refused_precisions: Mapping[Precision, str]
    attentions: tuple[str, ...]
    sharing_attentions: tuple[str, ...]
    loss_modes: tuple[LossMode, ...]
    special_tokens: Mapping[str, str]
    other_tokens: tuple[str, ...]
    lay_out: Callable[[Dialogue, LayoutOptions, Measure], Layout]
    lay_out_prompt: Callable[[Question, LayoutOptions, Measure], Prompt]
    answer_end: str
    config_faults: Callable[[Mapping[str, Any]], Sequence[str]]
    shape_of: Callable[[Mapping[str, Any]], ModelShape]
    published_configs: Mapping[str, Mapping[str, Any]]
    fit_context: Callable[[Mapping[str, Any], int], dict[str, Any]]
    auto_modules: Mapping[str, str]
    load_tokenizer: Callable[[Path], PreTrainedTokenizerBase]
    encode_text: EncodeText
    model_class: Callable[[Mapping[str, Any], frozenset[str]], type[PreTrainedModel]]
    published_config: Callable[[PreTrainedModel, dict[str, Any]], dict[str, Any]]
    lora_targets: tuple[str, ...]
    kept_in_16_bits: tuple[str, ...]
    write_tiny_checkpoint: Callable[[Path, Sequence[str]], None]
