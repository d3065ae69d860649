"""How Yuan2 sees a dialogue: one sequence, its turns joined by `<n>`, with `<sep>` before the answer and `<eod>` after.

`S` is the system text and a newline, or nothing; supervised tokens stand in «»:

    last_response   S q1<n>a1<n>q2<sep>«a2<eod>»
    split_example   the same for every answer, each a sample of its own
    efficient       S q1<n>«a1»<n>q2<sep>«a2<eod>»
    fastchat        S q1<n>«a1<n>»q2<n>«a2<eod>»      (efficient, with FastChat's tokens)
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

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
from ds_sft.errors import ConfigError

EOD = "<eod>"
SEP = "<sep>"
PAD = "<pad>"
CONTROL_TOKENS = (
    SEP,
    PAD,
    "<mask>",
    "<predict>",
    "<FIM_SUFFIX>",
    "<FIM_PREFIX>",
    "<FIM_MIDDLE>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
    EOD,
)
"""The order is the official loader's and decides the ids of those that the SentencePiece model has no piece for."""

# Three ordinary tokens: Yuan's models have a piece `<n>`, but no text of theirs was ever encoded with it.
_TURN = Segment("text", "<n>")
_SEP = Segment("control", SEP)
_LOSS_EOD = Segment("control", EOD, loss=True)

CHAT_TEMPLATE = (
    "{%- set has_system = messages[0]['role'] == 'system' -%}"
    "{%- set turns = messages[1:] if has_system else messages -%}"
    "{%- if has_system and messages[0]['content'].strip() -%}{{ messages[0]['content'] + '\n' }}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{%- if turn['role'] not in ['user', 'assistant'] -%}"
    "{{ raise_exception('role must be user or assistant, but is ' + turn['role']) }}"
    "{%- elif turn['role'] != ['user', 'assistant'][loop.index0 % 2] -%}"
    "{{ raise_exception('roles must alternate from user on, but ' + turn['role'] + ' is out of turn') }}"
    "{%- endif -%}"
    "{{ turn['content'] }}"
    "{%- if turn['role'] == 'user' and turns | length - loop.index <= 1 -%}{{ '<sep>' }}"
    "{%- elif not loop.last -%}{{ '<n>' }}"
    "{%- elif add_generation_prompt -%}{{ raise_exception('the last role must be user, but is assistant') }}"
    "{%- else -%}{{ '<eod>' }}{%- endif -%}"
    "{%- endfor -%}"
)
"""Renders the same characters, and so the same ids, as `lay_out` puts before an answer (and behind it).

The template of the published models takes the white space around every message away and puts `<sep>` behind a last
answer too. Training keeps messages byte for byte, so this one must.
"""


def lay_out(dialogue: Dialogue, options: LayoutOptions, measure: Measure) -> Layout:
    """Give the samples of a dialogue.

    Args:
        dialogue: System text and exchanges.
        options: Limit, loss mode and layout. Where the sample of one answer is too long the oldest exchanges leave it;
            an efficient one is cut between exchanges into several. An answer that is too long even so is cut by
            `encode`; a question never is.
        measure: Counts the tokens of segments.

    Returns:
        Samples in order, and the counters `history_dropped`, `answer_truncated` and `prompt_too_long`.

    Raises:
        ConfigError: When FastChat's layout is asked for with another loss than the efficient one.
    """
    if options.name != "native" and options.loss_mode != "efficient":
        raise ConfigError(
            f"layout: {options.name} must go with efficient_loss, but the loss is {options.loss_mode}; drop one of them"
        )

    def fits(run: Sequence[Exchange]) -> bool:
        return measure(_segments(dialogue.system, run, options)) <= options.max_tokens

    layout = Layout()
    for run, dropped in _RUNS[options.loss_mode](dialogue.exchanges, fits):
        segments = _segments(dialogue.system, run, options)
        layout.counters["history_dropped"] += dropped
        if len(run) == 1 and not fits(run):
            if measure(segments[:-2]) >= options.max_tokens:
                layout.counters["prompt_too_long"] += 1
                continue
            layout.counters["answer_truncated"] += 1
        layout.drafts.append(Draft(target=segments))
    return layout


def lay_out_prompt(question: Question, options: LayoutOptions, measure: Measure) -> Prompt:
    """Give what stands before an answer; it is the same in every loss mode.

    Args:
        question: With the exchanges before it.
        options: Limit, and the layout that the model was trained with.
        measure: Counts the tokens of segments.

    Returns:
        The sequence up to the answer; the oldest exchanges leave one that is too long.
    """
    exchanges = (*question.history, Exchange(question.text, ""))

    def before_answer(run: Sequence[Exchange]) -> tuple[Segment, ...]:
        # Nothing in it is supervised, so it is encoded as it is in a sample of the last answer.
        asked = [replace(segment, loss=False) for segment in _segments(question.system, run, options)[:-2]]
        return tuple(asked)

    def fits(run: Sequence[Exchange]) -> bool:
        return measure(before_answer(run)) <= options.max_tokens

    kept, dropped = next(_last_answer(exchanges, fits))
    return Prompt(before_answer(kept) if fits(kept) else (), dropped)


def _segments(system: str | None, run: Sequence[Exchange], options: LayoutOptions) -> tuple[Segment, ...]:
    """Lay out exchanges that follow each other; the answer and the end of the last one are the last two segments."""
    is_efficient, is_fastchat = options.loss_mode == "efficient", options.name == "fastchat"
    behind_answer = Segment("text", _TURN.text, loss=is_fastchat)
    segments = [Segment("text", f"{system}\n")] if system else []
    for one in run[:-1]:
        answer = Segment("text", one.answer, loss=is_efficient)
        segments += [Segment("text", one.question), _TURN, answer, behind_answer]
    last = run[-1]
    before_answer = _TURN if is_fastchat else _SEP
    answer = Segment("text", last.answer, loss=True)
    return (*segments, Segment("text", last.question), before_answer, answer, _LOSS_EOD)


_Fits = Callable[[Sequence[Exchange]], bool]
_Runs = Iterator[tuple[Sequence[Exchange], int]]
"""The exchanges of each sample, and how many older ones were left out. A run of one exchange may still be too long."""


def _last_answer(exchanges: Sequence[Exchange], fits: _Fits) -> _Runs:
    kept = _most_that_fit(len(exchanges) - 1, lambda older: fits(exchanges[-1 - older :]))
    yield exchanges[-1 - kept :], len(exchanges) - 1 - kept


def _every_answer(exchanges: Sequence[Exchange], fits: _Fits) -> _Runs:
    # What does not fit before one answer does not fit before the next: the first exchange only moves on, and a long
    # conversation is measured twice for each answer at most.
    first = 0
    for last in range(len(exchanges)):
        while first < last and not fits(exchanges[first : last + 1]):
            first += 1
        yield exchanges[first : last + 1], first


def _chunks(exchanges: Sequence[Exchange], fits: _Fits) -> _Runs:
    while exchanges:
        count = _longest_start(exchanges, fits)
        yield exchanges[:count], 0
        exchanges = exchanges[count:]


def _longest_start(exchanges: Sequence[Exchange], fits: _Fits) -> int:
    return 1 + _most_that_fit(len(exchanges) - 1, lambda more: fits(exchanges[: 1 + more]))


_RUNS = {"last_response": _last_answer, "split_example": _every_answer, "efficient": _chunks}


def _most_that_fit(limit: int, fits: Callable[[int], bool]) -> int:
    """Give the largest number up to a limit that fits (0 always does).

    Doubling, then halving: nothing much longer than what fits is ever measured, and that only a few times.
    """
    above = 1
    while above <= limit and fits(above):
        above *= 2
    start = above // 2
    between = range(start + 1, min(above, limit + 1))
    return start + bisect_right(between, False, key=lambda number: not fits(number))
