"""`ds-sft chat`: a conversation with a model, laid out as in training, each answer shown while it is written."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ds_sft.contracts import Exchange, Question
from ds_sft.data.draft import Encoder
from ds_sft.data.questions import answer_text, prompt_of
from ds_sft.errors import ConfigError
from ds_sft.tools.asking import Asking, encoder_of
from ds_sft.tools.named_model import find_named_model
from ds_sft.visible import visible

if TYPE_CHECKING:
    from ds_sft.tools.loaded_model import LoadedModel

log = logging.getLogger(__name__)

_HALF_CHARACTER = "\ufffd"
_COMMANDS = "/reset forgets, /save FILE keeps, /quit or Ctrl-D ends, Ctrl-C stops an answer"


@dataclass(frozen=True)
class Request:
    """What is asked of a chat.

    Args:
        model: A model folder, the folder of an adapter, or a name on the hub.
        asking: How answers are written.
        system: The system text, if there is one.
    """

    model: str
    asking: Asking
    system: str | None = None


def chat(request: Request, lines: Iterable[str], show: Callable[[str], None]) -> None:
    """Answer each line that is no command.

    Args:
        request: What is asked.
        lines: What the user types, without line ends.
        show: Shows a piece of an answer at once.

    Raises:
        ConfigError: When something of the request cannot be.
    """
    if request.system is not None and not _is_unicode(request.system):
        raise ConfigError("system: must be UTF-8, but is not; set the language of the terminal to UTF-8")
    named = find_named_model(request.model, base=request.asking.base)
    encoder = encoder_of(named, request.asking)
    # Only now: whoever has a wrong flag or path is told at once.
    from ds_sft.tools.loaded_model import load_named_model, where_and_how  # noqa: PLC0415

    device, dtype = where_and_how(named, request.asking)
    loaded = load_named_model(named, device=device, dtype=dtype)
    log.info("%s", _COMMANDS)
    talk = Talk(request, loaded, encoder, show)
    for line in lines:
        if not talk.hear(line):
            return


class Talk:
    """A conversation that goes on.

    Args:
        request: What was asked.
        loaded: The model.
        encoder: Turns questions into prompts.
        show: Shows a piece of an answer at once.
    """

    def __init__(self, request: Request, loaded: "LoadedModel", encoder: Encoder, show: Callable[[str], None]) -> None:
        system = request.system
        self._system = system if system and system.strip() else None
        self._asking, self._loaded, self._encoder, self._show = request.asking, loaded, encoder, show
        self._history: list[Exchange] = []
        self._num_asked = self._num_cut = 0

    def hear(self, line: str) -> bool:
        """Obey a command, or answer a question.

        Args:
            line: As typed.

        Returns:
            Whether the conversation goes on.
        """
        word, _, rest = line.strip().partition(" ") if line.startswith("/") else ("", "", "")
        if word == "/quit":
            return False
        if word == "/reset":
            self._history, self._num_cut = [], 0
            log.info("all is forgotten but the system text")
        elif word == "/save":
            self._save(rest.strip())
        elif word:
            log.warning(
                "%s: command must exist, but does not: %s; a space in front makes it a question", word, _COMMANDS
            )
        elif not _is_unicode(line):
            log.warning("question: must be UTF-8, but is not; set the language of the terminal to UTF-8")
        elif line.strip():
            self._answer(line)
        return True

    def _answer(self, question: str) -> None:
        asked = Question(self._system, tuple(self._history), question)
        prompt, num_dropped = prompt_of(asked, self._encoder)
        if not prompt:
            most = self._encoder.options.max_tokens
            log.warning("question: must fit into %d tokens, but does not; make it shorter", most)
            return
        if num_dropped:
            log.info("the %d oldest exchanges do not fit any more and are left out", num_dropped)
        ids: list[int] = []
        is_whole = False
        try:
            for piece in _pieces(self._ids_of(prompt), ids, self._encoder):
                self._show(visible(piece))
            is_whole = len(ids) < self._asking.max_new_tokens
            if not is_whole:
                log.info("the answer is not whole (most tokens: --max_new_tokens %d)", len(ids))
        except KeyboardInterrupt:
            log.info("stopped")
        self._show("\n")
        self._num_asked += 1
        answer = answer_text(ids, self._encoder)
        if not answer.strip():
            log.warning("the answer is blank, so question and answer are no part of the conversation")
            return
        self._num_cut += not is_whole
        self._history.append(Exchange(question, answer))

    def _ids_of(self, prompt: Sequence[int]) -> Iterator[int]:
        for (token,) in self._loaded.write([prompt], self._asking, numbers=[self._num_asked]):
            if token is not None and token != self._loaded.ends.end:
                yield token

    def _save(self, name: str) -> None:
        """Write the conversation as a data file; what goes wrong costs no conversation."""
        if not name or not self._history:
            missing = "at least one exchange" if name else "a file's name"
            log.warning("/save: needs %s, but there is none", missing)
            return
        said = [(role, text) for one in self._history for role, text in (("human", one.question), ("gpt", one.answer))]
        turns = [*([("system", self._system)] if self._system else []), *said]
        content = [{"id": "chat", "conversations": [{"from": role, "value": text} for role, text in turns]}]
        file = Path(name).expanduser()
        try:
            with file.open("x", encoding="utf-8") as stream:
                stream.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            log.warning("/save: file must be new and writable, but %s: %s; name another one", file, error.strerror)
            return
        log.info("%s: %d exchanges, ready to be trained on", file, len(self._history))
        if self._num_cut:
            log.warning("%d of its answers are not whole; mend or drop them before you train on them", self._num_cut)


def _pieces(new: Iterator[int], ids: list[int], encoder: Encoder) -> Iterator[str]:
    """Give what each token adds to the text; characters of several tokens come when they are whole."""
    shown = ""
    for token in new:
        ids.append(token)
        # The newline behind every answer may turn out to be none.
        text = answer_text(ids, encoder).rstrip(_HALF_CHARACTER)
        if text.startswith(shown) and len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
    text = answer_text(ids, encoder)
    if text.startswith(shown):
        yield text[len(shown) :]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
