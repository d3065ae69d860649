"""How Flan-T5 sees a dialogue: every answer is a question-answer pair, the history stands before the question.

The texts are the interface of FastChat's T5 checkpoints, so that those stay usable.
"""

from collections.abc import Sequence

from ds_sft.contracts import (
    Dialogue,
    Draft,
    Exchange,
    Layout,
    LayoutOptions,
    Measure,
    Prompt,
    Question,
    Segment,
)

DEFAULT_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
SPECIAL_TOKENS = {"pad_token": "[PAD]"}
OTHER_TOKENS = ("<", "{", "\n", "}", "`", " ", "\\", "^", "\t")
"""T5's own model has no piece for these. The order is FastChat's, so the ids are those of its checkpoints."""

ANSWER_END = "\n"
END = Segment("control", "</s>")
LOSS_END = Segment("control", "</s>", loss=True)

CHAT_TEMPLATE = (
    "{%- set has_system = messages[0]['role'] == 'system' -%}"
    "{%- set turns = messages[1:] if has_system else messages -%}"
    "{%- if has_system and messages[0]['content'].strip() -%}{{ messages[0]['content'] + '\n\n' }}"
    "{%- else -%}{{ '" + DEFAULT_SYSTEM.replace("'", "\\'") + "' + '\n\n' }}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{%- if turn['role'] == 'user' -%}{{ '### Human: ' + turn['content'] + '\n' }}"
    "{%- elif turn['role'] == 'assistant' -%}{{ '### Assistant: ' + turn['content'] + '\n' }}"
    "{%- else -%}{{ raise_exception('role must be user or assistant, but is ' + turn['role']) }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '### Assistant: ' }}{%- endif -%}"
    "{{ eos_token }}"
)
"""Renders what the encoder reads: the same characters, and so the same ids, as `lay_out` puts before an answer."""


def lay_out(dialogue: Dialogue, options: LayoutOptions, measure: Measure) -> Layout:
    """Give one question-answer pair for every exchange.

    Args:
        dialogue: System text and exchanges.
        options: Only `max_tokens` matters: the limit of the source and, separately, of the target. The oldest exchanges
            leave a source that is too long; the target is cut by `encode`.
        measure: Counts the tokens of segments.

    Returns:
        Pairs in order, and the counters `history_dropped`, `answer_truncated` and `prompt_too_long`.
    """
    layout, max_tokens = Layout(), options.max_tokens
    header = _header(dialogue.system)
    told = [history_of(exchange) for exchange in dialogue.exchanges]
    costs = [measure([segment]) for segment in told]
    for index, exchange in enumerate(dialogue.exchanges):
        question = _asked(exchange.question)
        history = list(zip(told[:index], costs[:index], strict=True))
        source, dropped = _longest_source(header, history, question, max_tokens, measure)
        layout.counters["history_dropped"] += dropped
        if not source:
            layout.counters["prompt_too_long"] += 1
            continue
        target = (Segment("text", f"{exchange.answer}{ANSWER_END}", loss=True), LOSS_END)
        layout.counters["answer_truncated"] += measure(target) > max_tokens
        layout.drafts.append(Draft(target=target, source=source))
    return layout


def lay_out_prompt(question: Question, options: LayoutOptions, measure: Measure) -> Prompt:
    """Give what the encoder reads before the decoder answers.

    Args:
        question: With the exchanges before it.
        options: Only `max_tokens` matters: the oldest exchanges leave a source that is too long.
        measure: Counts the tokens of segments.

    Returns:
        The source of a training sample with this question.
    """
    told = [history_of(exchange) for exchange in question.history]
    history = [(segment, measure([segment])) for segment in told]
    header, asked = _header(question.system), _asked(question.text)
    return Prompt(*_longest_source(header, history, asked, options.max_tokens, measure))


def history_of(exchange: Exchange) -> Segment:
    """Tell an exchange that lies behind.

    Args:
        exchange: Question and answer.

    Returns:
        The text that stands before a later question.
    """
    return Segment("text", f"### Human: {exchange.question}\n### Assistant: {exchange.answer}\n")


def _header(system: str | None) -> Segment:
    return Segment("text", (system or DEFAULT_SYSTEM) + "\n\n")


def _asked(question: str) -> Segment:
    return Segment("text", f"### Human: {question}\n### Assistant: ")


def _longest_source(
    header: Segment, history: Sequence[tuple[Segment, int]], question: Segment, max_tokens: int, measure: Measure
) -> tuple[tuple[Segment, ...], int]:
    """Give the source with as much history as fits and the number of exchanges left out; empty if none fits.

    The tokens of the parts add up to nearly those of the whole, so their sum tells where to start; measuring every
    possible history instead would read a long conversation a cubic number of times.
    """

    def source(dropped: int) -> tuple[Segment, ...]:
        return (header, *(segment for segment, _ in history[dropped:]), question, END)

    dropped, room = len(history), max_tokens - measure(source(len(history)))
    if room < 0:
        return (), dropped
    while dropped > 0 and room >= history[dropped - 1][1]:
        dropped -= 1
        room -= history[dropped][1]
    while dropped > 0 and measure(source(dropped - 1)) <= max_tokens:
        dropped -= 1
    while dropped < len(history) and measure(source(dropped)) > max_tokens:
        dropped += 1
    return source(dropped), dropped
