"""Turns a conversation into exchanges: roles, merging, pairing, and a counter for all that was dropped.

The rules are numbered N1 to N6 here and in the tests: N1 roles, N2 system first, N3 merging runs of one role,
N4 leading answers and trailing questions, N5 blank texts, N6 everything else stays byte for byte.
"""

from collections import Counter
from itertools import groupby

from ds_sft.contracts import Conversation, Dialogue, Exchange, Rejection

_ROLES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "chatgpt": "gpt",
    "system": "system",
}
"""N1: names of roles in data files -> ours."""


def normalise(conversation: Conversation) -> tuple[Dialogue | Rejection, Counter[str]]:
    """Turn a conversation into exchanges.

    Args:
        conversation: The record as read.

    Returns:
        The dialogue, or why the whole conversation is rejected (`bad_value`, `unknown_role`, `system_not_first`,
        `no_exchange`); and what was merged or dropped on the way.
    """
    counters: Counter[str] = Counter()
    turns = [(_role(turn.role), turn.text) for turn in conversation.turns]
    if any(role is None for role, _ in turns):
        return Rejection("unknown_role", ""), counters
    named = [(role, text) for role, text in turns if role is not None and isinstance(text, str)]
    if len(named) < len(turns):
        return Rejection("bad_value", ""), counters
    if any(role == "system" for role, _ in named[1:]):
        return Rejection("system_not_first", ""), counters
    system = named.pop(0)[1] if named and named[0][0] == "system" else None
    exchanges = _exchanges(_merge(named, counters), counters)
    if not exchanges:
        return Rejection("no_exchange", ""), counters
    return Dialogue(system if system and system.strip() else None, exchanges), counters


def _role(name: object) -> str | None:
    return _ROLES.get(name.strip().lower()) if isinstance(name, str) else None


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
