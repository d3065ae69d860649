"""Reads tokenizer folders of transformers before 4.34, which do not say how their added tokens are to be found."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, T5Tokenizer

log = logging.getLogger(__name__)

_DEFAULT_SENTINELS = 100


def is_old(folder: Path) -> bool:
    """Tell whether a folder lists added tokens with nothing but their ids.

    Args:
        folder: A tokenizer's folder.

    Returns:
        Whether `read_old` must read it.
    """
    has_files = (folder / "spiece.model").is_file() and (folder / "added_tokens.json").is_file()
    return has_files and "added_tokens_decoder" not in _content(folder / "tokenizer_config.json")


def read_old(folder: Path) -> PreTrainedTokenizerBase:
    """Build the tokenizer anew from `spiece.model`, with the added tokens under the ids that they were trained with.

    transformers 5 would look for these tokens in normalised text, where newline, tab and space are all a space: the
    three collide, and which of them wins changes from process to process.

    Args:
        folder: Where `is_old` is true.

    Returns:
        The tokenizer.

    Raises:
        ValueError: When an id cannot be had.
        TypeError: When a file holds something else than it should.
    """
    config = _content(folder / "tokenizer_config.json")
    added = _content(folder / "added_tokens.json")
    tokenizer: PreTrainedTokenizerBase = T5Tokenizer.from_pretrained(
        str(folder / "spiece.model"), extra_ids=config.get("extra_ids", _DEFAULT_SENTINELS)
    )
    named = _special_tokens({**config, **_content(folder / "special_tokens_map.json")})
    if not all(isinstance(token_id, int) for token_id in added.values()):
        raise TypeError("added_tokens.json must map tokens to whole numbers, but does not")
    for token, token_id in sorted(added.items(), key=lambda item: int(item[1])):
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=token in named)])
        due = tokenizer.convert_tokens_to_ids(token)
        if due != token_id:
            raise ValueError(f"added_tokens.json: {token!r} must have id {due}, but has {token_id}")
    log.warning(
        "%s: found %d added tokens without their flags (saved by transformers before 4.34); built the tokenizer anew "
        "from spiece.model and kept their ids, because transformers 5 would confuse newline, tab and space",
        folder / "added_tokens.json",
        len(added),
    )
    return tokenizer


def _content(file: Path) -> Mapping[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(content, dict):
        raise TypeError(f"{file.name} must hold an object, but holds {content!r:.40}")
    return content


def _special_tokens(content: Mapping[str, Any]) -> set[str]:
    """Give the texts of all tokens that have a role; an entry is a text or an object with one."""
    entries = [value for name, value in content.items() if name.endswith("_token")]
    entries += content.get("additional_special_tokens") or []
    return {entry["content"] if isinstance(entry, dict) else str(entry) for entry in entries}
