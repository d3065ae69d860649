"""The forms that a record may have: ShareGPT, messages and Alpaca; each of them becomes turns."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from ds_sft.contracts import Turn

_FORM_KEYS = ("conversations", "messages", "instruction", "output")
_SPEAKERS = ("human", "gpt")
_KEYS_SHOWN = 8
_LENGTH_SHOWN = 40


class Message(msgspec.Struct, gc=False):
    """One message; its values stay unchecked, because a bad one costs its conversation and not the file."""

    sender: Any = msgspec.field(name="from", default=None)
    value: Any = None
    role: Any = None
    content: Any = None


class Record(msgspec.Struct, gc=False):
    """One record of any form; keys we do not know are skipped, and null stands for a key that is not there."""

    conversations: list[Message] | None = None
    messages: list[Message] | None = None
    instruction: Any = msgspec.UNSET
    input: Any = None
    output: Any = msgspec.UNSET
    history: Any = None
    system: Any = None
    id: Any = None


_RECORD = msgspec.json.Decoder(Record)
_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode(text: memoryview | bytes) -> Record:
    """Read one record without asking for its form.

    Args:
        text: JSON of one object.

    Returns:
        The record.

    Raises:
        msgspec.DecodeError: When the text is no JSON, or a field is of the wrong kind.
        UnicodeDecodeError: When it is not UTF-8.
        RecursionError: When it is nested too deeply.
    """
    return _RECORD.decode(text)


def check(text: memoryview | bytes) -> None:
    """Make sure that a record can be read and has exactly one form.

    Args:
        text: JSON of one object.

    Raises:
        msgspec.DecodeError: As `decode` does, or when the record has none of the forms, or two.
        UnicodeDecodeError: As `decode` does.
        RecursionError: As `decode` does.
    """
    record = decode(text)
    forms = _forms(record)
    if not forms:
        raise msgspec.ValidationError(_unknown_form(_KEYS.decode(text)))
    if len(forms) > 1:
        raise msgspec.ValidationError(f"must have one form, but has both `{forms[0]}` and `{forms[1]}`")
    _pairs(record.history if forms == ["instruction"] else None)
    for index, message in enumerate(_messages(record) or ()):
        if (message.sender is not None and message.role is not None) or (
            message.value is not None and message.content is not None
        ):
            raise msgspec.ValidationError(f"`{forms[0]}[{index}]` {_told_twice(message)}")


def turns_of(record: Record) -> tuple[Turn, ...]:
    """Give the messages of a record in the order in which they are said.

    Args:
        record: As decoded.

    Returns:
        The turns, with values of any kind; a `system` text that stands beside them comes first, unless it is blank.
    """
    messages = _messages(record)
    turns = _alpaca_turns(record) if messages is None else _message_turns(messages)
    return tuple(turns) if _is_blank(record.system) else (Turn("system", record.system), *turns)


def identity_of(record: Record) -> str:
    """Give the record's own `id`.

    Args:
        record: As decoded.

    Returns:
        The `id` when it is text or a whole number, else an empty string.
    """
    return str(record.id) if isinstance(record.id, str | int) else ""


def _forms(record: Record) -> list[str]:
    """Name the forms of a record by their first keys."""
    forms = []
    if record.conversations is not None:
        forms.append("conversations")
    if record.messages is not None:
        forms.append("messages")
    if record.instruction is msgspec.UNSET or record.output is msgspec.UNSET:
        return forms
    # A table of several forms has all keys in all rows, with null where they do not apply.
    if not forms or (record.instruction is not None and record.output is not None):
        forms.append("instruction")
    return forms


def _messages(record: Record) -> Sequence[Message] | None:
    return record.messages if record.conversations is None else record.conversations


def _told_twice(message: Message) -> str:
    if message.sender is not None and message.role is not None:
        return "must name one speaker, but has both `from` and `role`"
    return "must hold one text, but has both `value` and `content`"


def _pairs(history: object) -> list[list[object]]:
    """Give the questions and answers before an instruction."""
    if not isinstance(history, list | None):
        raise msgspec.ValidationError(f"`history` must be array or null, but is {type(history).__name__}")
    for index, pair in enumerate(history or ()):
        if not isinstance(pair, list) or len(pair) != len(_SPEAKERS):
            raise msgspec.ValidationError(f"`history[{index}]` must be question and answer, but is {_short(pair)}")
    return history or []


def _unknown_form(keys: Mapping[str, msgspec.Raw]) -> str:
    """Say that none of the forms is there, and which key may be misspelt."""
    first = list(keys.items())[:_KEYS_SHOWN]
    told = ", ".join(f"`{_short(key)}`" + " (null)" * (bytes(value) == b"null") for key, value in first) or "no keys"
    more = f" and {len(keys) - len(first)} more" if len(keys) > len(first) else ""
    missing = [name for name in _FORM_KEYS if name not in keys]
    others = [_short(key).lower() for key, _ in first if key not in _FORM_KEYS]
    meant = [name for key in others for name in get_close_matches(key, missing)]
    hint = f" (did you mean `{meant[0]}`?)" if meant else ""
    return f"must hold `conversations`, `messages` or `instruction` and `output`, but has {told}{more}{hint}"


def _short(value: object) -> str:
    """Show a value in one short line."""
    return repr(value).strip("'")[:_LENGTH_SHOWN]


def _message_turns(messages: Sequence[Message]) -> list[Turn]:
    return [
        Turn(
            message.role if message.sender is None else message.sender,
            _text(message.content) if message.value is None else message.value,
        )
        for message in messages
    ]


def _text(content: object) -> object:
    """Join the parts of a message, when all of them are text."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    told = [text for text in texts if isinstance(text, str)]
    return "\n".join(told) if told and len(told) == len(content) else content


def _alpaca_turns(record: Record) -> list[Turn]:
    turns = [Turn(*said) for pair in _pairs(record.history) for said in zip(_SPEAKERS, pair, strict=True)]
    return [*turns, Turn("human", _question(record.instruction, record.input)), Turn("gpt", record.output)]


def _question(instruction: object, context: object) -> object:
    """Give an instruction and what it is about; a value that is no text is given as it is, to be rejected."""
    if _is_blank(context) or not isinstance(instruction, str):
        return instruction
    if _is_blank(instruction) or not isinstance(context, str):
        return context
    return f"{instruction}\n{context}"


def _is_blank(text: object) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())
