"""What a model answers in the middle of its training: the same questions at every evaluation, scored and kept."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer

from ds_sft.config.parse import Settings
from ds_sft.contracts import Family
from ds_sft.data.draft import Encoder
from ds_sft.data.questions import Asked, answer_text, prompt_options, questions_of
from ds_sft.data.read import open_records
from ds_sft.errors import ConfigError, DataError
from ds_sft.model.decoding import ends_of, greedy, write, write_all
from ds_sft.save.files import replace_file
from ds_sft.training.text_scores import missing_scores, text_scores
from ds_sft.zero.ranks import exchange, together

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Predicting:
    """The questions of a run's evaluations.

    Args:
        questions: Each with an answer to compare with.
        encoder: That made their prompts.
        max_new_tokens: Most tokens of an answer.
        batch_size: Questions that a rank answers side by side.
        into: Folder of the run.
    """

    questions: Sequence[Asked]
    encoder: Encoder
    max_new_tokens: int
    batch_size: int
    into: Path


def predicting_faults(settings: Settings) -> Iterator[ConfigError]:
    """Find out before anything is loaded whether answers can be made and scored.

    Args:
        settings: As parsed.

    Yields:
        One error for each fault.
    """
    training = settings.training
    if not training["predict_with_generate"]:
        return
    if str(getattr(training["eval_strategy"], "value", training["eval_strategy"])) == "no":
        yield ConfigError(
            "predict_with_generate: needs evaluations, but eval_strategy is no; add --eval_strategy epoch"
        )
    for name in ("num_predict", "predict_max_new_tokens"):
        if training[name] < 1:
            yield ConfigError(f"{name}: must be at least 1, but is {training[name]}; give another value")
    yield from missing_scores()


def questions_to_predict(
    settings: Settings, *, family: Family, tokenizer: PreTrainedTokenizerBase
) -> Predicting | None:
    """Pick the questions, from the whole of the evaluation file and always the same ones.

    Args:
        settings: Of the run.
        family: Card of the model.
        tokenizer: Of the model.

    Returns:
        None where no answers are asked for.

    Raises:
        DataError: When no question has an answer.
    """
    training = settings.training
    if not training["predict_with_generate"] or not settings.data.eval_data_path:
        return None
    options = prompt_options(
        family,
        max_tokens=training["model_max_length"],
        max_new_tokens=training["predict_max_new_tokens"],
        layout=settings.data.layout,
    )
    encoder = Encoder(family, tokenizer, options)
    records = open_records(Path(settings.data.eval_data_path).expanduser())
    picked = records[:: max(1, math.ceil(len(records) / training["num_predict"]))]
    questions = [asked for asked in questions_of(picked, encoder) if asked.expected is not None]
    if not questions:
        raise DataError(
            f"{records.path}: must hold answers to compare with, but the last questions have none; add some"
        )
    batch_size = training["per_device_eval_batch_size"]
    return Predicting(questions, encoder, training["predict_max_new_tokens"], batch_size, settings.output_dir)


def prediction_metrics(
    predicting: Predicting, trainer: Trainer, model: nn.Module, *, prefix: str, is_stop_asked: Callable[[], bool]
) -> dict[str, float] | None:
    """Answer the questions, score the answers and keep them; every rank must call this.

    Args:
        predicting: The questions.
        trainer: Tells step, ranks and precision.
        model: In evaluation mode; the engine, or what can evaluate before there is one.
        prefix: Begins the names of the metrics.
        is_stop_asked: Whether this rank has been asked to stop; all ranks then stop after the same token.

    Returns:
        The scores, each with the prefix; None when it was stopped.
    """
    own = _answers_of_this_rank(predicting, trainer, model, is_stop_asked)
    if own is None:
        return None
    answers = {number: text for part in exchange(own) for number, text in part.items()}
    texts = [answers[number] for number in range(len(predicting.questions))]
    step = trainer.state.global_step
    together(lambda: keep_predictions(predicting, texts, step=step) if trainer.is_world_process_zero() else None)
    scores = text_scores(texts, [str(asked.expected) for asked in predicting.questions])
    return {f"{prefix}_{name}": score for name, score in scores.items()}


def keep_predictions(predicting: Predicting, texts: Sequence[str], *, step: int) -> None:
    """Put answers behind those of earlier steps; a run that went back writes later ones anew.

    Args:
        predicting: The questions.
        texts: One answer for each.
        step: Of the evaluation.

    Raises:
        OSError: When the disk is full or fails; the file is then what it was.
    """
    file = predicting.into / PREDICTIONS
    kept = [line for line in _lines_of(file) if _step_of(line) < step]
    new = [
        json.dumps(
            {
                "step": step,
                "place": asked.place,
                "question": asked.question,
                "expected": asked.expected,
                "prediction": text,
            }
        )
        for asked, text in zip(predicting.questions, texts, strict=True)
    ]
    replace_file(file, "".join(f"{line}\n" for line in [*kept, *new]).encode())


def _answers_of_this_rank(
    predicting: Predicting, trainer: Trainer, model: nn.Module, is_stop_asked: Callable[[], bool]
) -> dict[int, str] | None:
    """Answer this rank's share; where ZeRO-3 partitions the weights, all ranks run the same number of steps."""
    args, encoder = trainer.args, predicting.encoder
    bare: Any = trainer.model
    ends = ends_of(bare, encoder.tokenizer, is_encoder_decoder=encoder.family.is_encoder_decoder)
    is_stopped = False

    def agree(is_left: bool) -> bool:
        nonlocal is_stopped
        found = torch.tensor([is_left, is_stop_asked()], dtype=torch.long, device=args.device)
        num_left, num_stops = trainer.accelerator.reduce(found, reduction="sum").tolist()
        is_stopped = num_stops > 0
        return num_left > 0 and not is_stopped

    texts: dict[int, str] = {}
    for numbers in _shares(len(predicting.questions), predicting.batch_size, args.process_index, args.world_size):
        prompts = [predicting.questions[number].prompt for number in numbers]
        with trainer.compute_loss_context_manager():
            steps = write(
                model,
                prompts,
                ends=ends,
                max_new_tokens=predicting.max_new_tokens,
                device=args.device,
                choose=greedy,
                agree=agree,
            )
            written = write_all(steps, num_rows=len(prompts), end=ends.end)
        if is_stopped:
            return None
        texts |= {number: answer_text(answer.ids, encoder) for number, answer in zip(numbers, written, strict=True)}
    return texts


def _shares(num_questions: int, batch_size: int, rank: int, world_size: int) -> Iterator[list[int]]:
    """Give the batches of a rank: as many, and of the same sizes, on every rank; the first question fills gaps."""
    width = math.ceil(num_questions / world_size)
    own = list(range(rank, num_questions, world_size))
    own += [0] * (width - len(own))
    for start in range(0, width, batch_size):
        yield own[start : start + batch_size]


def _lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="ascii", errors="replace").splitlines() if file.is_file() else []


def _step_of(line: str) -> float:
    """Give the step of a line; one that is none is left out."""
    try:
        content: Any = json.loads(line)
        return float(content["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf
