"""The functions that programs written for FastChat's T5 trainer call, with their names and what they give back.

They give the samples of the main job, and leave their arguments as they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ds_sft.config.sources import DataArguments
from ds_sft.contracts import Dialogue, Layout, LayoutOptions, Segment
from ds_sft.data import module
from ds_sft.data.collate import DataCollatorForSupervisedDataset
from ds_sft.data.datasets import load_datasets
from ds_sft.data.draft import Encoder
from ds_sft.data.module import Source, conversation_of, limit_of
from ds_sft.data.normalise import normalise
from ds_sft.families.flan_t5.family import FAMILY
from ds_sft.families.flan_t5.template import history_of, lay_out
from ds_sft.families.flan_t5.tokenizer import encode_text

_PADDING = "<pad>"


def preprocess(sources: Sequence[Source], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[list[int]]]:
    """Make question-answer pairs of conversations and tokenise them.

    Args:
        sources: Conversations, each a list of messages with `from` and `value`.
        tokenizer: With the added tokens; its `model_max_length` limits questions and answers, 2048 where it has none.

    Returns:
        `input_ids` and `labels` of every pair.
    """
    return module.preprocess(sources, _encoder(tokenizer))


def make_supervised_data_module(tokenizer: PreTrainedTokenizerBase, data_args: DataArguments) -> dict[str, Any]:
    """Make what a trainer needs to read data.

    Args:
        tokenizer: As in `preprocess`.
        data_args: Which files, and how.

    Returns:
        `train_dataset`, `eval_dataset` (None without `eval_data_path`) and `data_collator`.
    """
    train, evaluation = load_datasets(data_args, encoder=_encoder(tokenizer))
    padding: Any = tokenizer.convert_tokens_to_ids(_PADDING)
    collator = DataCollatorForSupervisedDataset(
        pad_token_id=int(tokenizer.pad_token_id), decoder_start_token_id=padding, decoder_pad_token_id=padding
    )
    return {"train_dataset": train, "eval_dataset": evaluation, "data_collator": collator}


def _form_qa(sources: Sequence[Source]) -> list[tuple[str, str]]:
    """Give the question-answer pairs of conversations as text.

    Args:
        sources: As in `preprocess`.

    Returns:
        What the encoder reads and what the decoder writes, of every pair, without the closing token.
    """
    layouts = [_unlimited_layout(dialogue) for dialogue in map(_dialogue, sources) if dialogue is not None]
    return [(_text(draft.source), _text(draft.target)) for layout in layouts for draft in layout.drafts]


def _add_speaker_and_signal(header: str, source: Source) -> str:
    """Give a whole conversation as text: the header, then every message behind its speaker.

    Args:
        header: Stands before the first message.
        source: As in `preprocess`.

    Returns:
        The text; nothing but the header when the conversation holds no question with an answer.
    """
    dialogue = _dialogue(source)
    return header + "".join(history_of(exchange).text for exchange in (dialogue.exchanges if dialogue else ()))


def _tokenize_fn(strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Tokenise texts, each with the closing token.

    Args:
        strings: The texts.
        tokenizer: As in `preprocess`; a text that is too long is cut before the closing token.

    Returns:
        `input_ids` and `labels`, the same tensors of shape [T], and their lengths `input_ids_lens` and `labels_lens`.
    """
    limit = limit_of(tokenizer)
    rows = [torch.tensor([*encode_text(tokenizer, text)[: limit - 1], tokenizer.eos_token_id]) for text in strings]
    lengths = [len(row) for row in rows]
    return {"input_ids": rows, "labels": rows, "input_ids_lens": lengths, "labels_lens": list(lengths)}


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return Encoder(FAMILY, tokenizer, LayoutOptions(limit_of(tokenizer)))


def _dialogue(source: Source) -> Dialogue | None:
    outcome, _ = normalise(conversation_of(source, place="conversation"))
    return outcome if isinstance(outcome, Dialogue) else None


def _unlimited_layout(dialogue: Dialogue) -> Layout:
    return lay_out(dialogue, LayoutOptions(max_tokens=1), lambda _segments: 0)


def _text(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments if segment.kind == "text")
