"""Turns a conversation into exchanges: roles, merging, pairing, and a counter for all that was dropped.

The rules are numbered N1 to N6 here and in the tests: N1 roles, N2 system first, N3 merging runs of one role,
N4 leading answers and trailing questions, N5 blank texts, N6 everything else stays byte for byte.
"""

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import groupby

from ds_sft.contracts import Conversation, Dialogue, Exchange, Question, Rejection, Turn

_ROLES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "chatgpt": "gpt",
    "system": "system",
}
"""N1: names of roles in data files -> ours."""

_JSON_KINDS = {type(None): "no", bool: "a true or false as", list: "an array as", dict: "an object as"}
_LENGTH_SHOWN = 40
_UNANSWERED = "\0"
"""Stands for the answer that an open question has not got yet."""


def normalise(conversation: Conversation) -> tuple[Dialogue | Rejection, Counter[str]]:
    """Turn a conversation into exchanges.

    Args:
        conversation: The record as read.

    Returns:
        The dialogue, or why the whole conversation is rejected (`bad_value`, `unknown_role`, `system_not_first`,
        `no_exchange`); and what was merged or dropped on the way.
    """
    counters: Counter[str] = Counter()
    turns = conversation.turns
    named = [(role, turn.text) for turn in turns if (role := _role(turn.role)) and isinstance(turn.text, str)]
    if len(named) < len(turns):
        return _bad_turn(turns), counters
    for number, (role, _) in enumerate(named, start=1):
        if role == "system" and number > 1:
            told = f"turn {number} is a system turn, and only the first may be one"
            return Rejection("system_not_first", told), counters
    system = named[0][1] if named and named[0][0] == "system" else None
    exchanges = _exchanges(_merge(named[system is not None :], counters), counters)
    if not exchanges:
        return Rejection("no_exchange", _told_turns([role for role, _ in named], +counters)), counters
    return Dialogue(system if system and system.strip() else None, exchanges), counters


def last_question(conversation: Conversation) -> tuple[tuple[Question, str | None] | Rejection, Counter[str]]:
    """Give the last question of a conversation by the rules of training; it needs no answer.

    Args:
        conversation: The record as read.

    Returns:
        The question and its answer (None where it has none, or a blank one), or why the conversation is rejected; and
        what was merged or dropped on the way.
    """
    turns = list(conversation.turns)
    while turns and _role(turns[-1].role) == "gpt" and isinstance(turns[-1].text, str) and not turns[-1].text.strip():
        turns.pop()
    if turns and _role(turns[-1].role) == "human":
        turns.append(Turn("gpt", _UNANSWERED))
    dialogue, counters = normalise(Conversation(tuple(turns), conversation.place, conversation.identity))
    if isinstance(dialogue, Rejection):
        return dialogue, counters
    *history, last = dialogue.exchanges
    expected = None if last.answer == _UNANSWERED else last.answer
    return (Question(dialogue.system, tuple(history), last.question), expected), counters


def _role(name: object) -> str | None:
    return _ROLES.get(name.strip().lower()) if isinstance(name, str) else None


def _bad_turn(turns: Sequence[Turn]) -> Rejection:
    """Name the first turn with a role that we do not know, or else the first one without text."""
    for number, turn in enumerate(turns, start=1):
        if _role(turn.role) is None:
            return Rejection("unknown_role", f"turn {number} has {_told_role(turn.role)}")
    number, text = next((n, turn.text) for n, turn in enumerate(turns, start=1) if not isinstance(turn.text, str))
    return Rejection("bad_value", f"turn {number} has {_told_kind(text)} text")


def _told_role(name: object) -> str:
    if not isinstance(name, str):
        return f"{_told_kind(name)} role"
    meant = get_close_matches(name.strip().lower()[:_LENGTH_SHOWN], _ROLES, n=1)
    hint = f"did you mean {meant[0]!r}?" if meant else f"known are {', '.join(_ROLES)}"
    return f"role {name[:_LENGTH_SHOWN]!r}; {hint}"


def _told_kind(value: object) -> str:
    return _JSON_KINDS.get(type(value), "a number as")


def _told_turns(roles: Sequence[str], counters: Counter[str]) -> str:
    """Say what a conversation without an exchange has instead."""
    turns = ", ".join(f"{count} {role}" for role, count in Counter(roles).items())
    dropped = ", ".join(f"{count} {name}" for name, count in counters.items())
    return (
        f"no question has an answer in {len(roles)} turns"
        + (f": {turns}" if turns else "")
        + (f" ({dropped})" if dropped else "")
    )


def _merge(turns: list[tuple[str, str]], counters: Counter[str]) -> list[tuple[str, str]]:
    """Join each run of one role with newlines, leaving out blank parts (N3)."""
    merged = []
    for role, run in groupby(turns, key=lambda turn: turn[0]):
        parts = [text for _, text in run]
        counters["merged_turns"] += len(parts) - 1
        told = [part for part in parts if part.strip()]
        merged.append((role, "\n".join(told) if len(parts) > 1 else parts[0]))
    return merged


def _exchanges(turns: list[tuple[str, str]], counters: Counter[str]) -> tuple[Exchange, ...]:
    """Pair alternating turns (N4) and drop pairs with a blank side (N5)."""
    if turns and turns[0][0] == "gpt":
        turns = turns[1:]
        counters["leading_gpt"] += 1
    if turns and turns[-1][0] == "human":
        turns = turns[:-1]
        counters["trailing_human"] += 1
    kept = []
    for (_, question), (_, answer) in zip(turns[::2], turns[1::2], strict=True):
        if not answer.strip():
            counters["empty_answer"] += 1
        elif not question.strip():
            counters["empty_question"] += 1
        else:
            kept.append(Exchange(question, answer))
    return tuple(kept)
