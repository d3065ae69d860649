"""The peer of tokenisation.py: the same samples with `datasets.map`, as its own documentation tells to do it.

It runs with a Python that has `datasets` and `transformers`; nothing of this package is used but a tokenizer that
transformers lacks. It reads one JSON object from its input, and prints one.
"""

import json
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

import datasets

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
IGNORED = -100

Batch = dict[str, list[Any]]


def pairs(batch: Batch, *, tokenizer: Any, max_tokens: int) -> Batch:
    """Make a pair of every answer: all that was said before, and the answer."""
    sources, targets = [], []
    for messages in batch["conversations"]:
        told = f"{SYSTEM}\n\n"
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            told += f"### Human: {question['value']}\n### Assistant: "
            sources.append(told)
            targets.append(f"{answer['value']}\n")
            told += targets[-1]
    labels = tokenizer(targets, max_length=max_tokens, truncation=True)["input_ids"]
    return {"input_ids": tokenizer(sources, max_length=max_tokens, truncation=True)["input_ids"], "labels": labels}


def sequences(batch: Batch, *, tokenizer: Any, max_tokens: int) -> Batch:
    """Make one sequence of a conversation, supervised on every answer."""
    texts = [
        f"{message['value']}<n>" if index % 2 == 0 else message["value"]
        for messages in batch["conversations"]
        for index, message in enumerate(messages)
    ]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    found: Batch = {"input_ids": [], "labels": []}
    for messages in batch["conversations"]:
        stretches = [next(ids) for _ in messages]
        labels = [one if index % 2 else [IGNORED] * len(one) for index, one in enumerate(stretches)]
        end = [tokenizer.eos_token_id]
        found["input_ids"].append([*(token for one in stretches for token in one), *end][:max_tokens])
        found["labels"].append([*(token for one in labels for token in one), *end][:max_tokens])
    return found


def processor_seconds() -> float:
    """Give the processor time of this process and of those it has waited for."""
    usages = getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Do the job that was sent, and tell what it took; reading the file is not counted."""
    job = json.load(sys.stdin)
    if job["tokenizer_path"]:
        sys.path.insert(0, job["tokenizer_path"])
        from ds_sft.families.yuan2.tokenizer import load_tokenizer  # noqa: PLC0415  # only this job needs it

        tokenizer: Any = load_tokenizer(Path(job["tokenizer"]))
        work = partial(sequences, tokenizer=tokenizer, max_tokens=job["max_tokens"])
    else:
        from transformers import AutoTokenizer  # noqa: PLC0415

        tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
        work = partial(pairs, tokenizer=tokenizer, max_tokens=job["max_tokens"])
    datasets.disable_progress_bars()
    records = datasets.load_dataset("json", data_files=job["data"], cache_dir=job["cache"], split="train")
    before, started = processor_seconds(), time.perf_counter()
    made = records.map(work, batched=True, num_proc=job["num_processes"], remove_columns=records.column_names)
    seconds, busy = time.perf_counter() - started, processor_seconds() - before
    columns = ("input_ids", "labels") if not job["tokenizer_path"] else ("input_ids",)
    lengths = (len(ids) for column in columns for batch in made.iter(1000) for ids in batch[column])
    told = {"samples": len(made), "tokens": sum(lengths), "seconds": seconds, "processor_seconds": busy}
    print(json.dumps(told | {"versions": {name: version(name) for name in ("datasets", "transformers", "tokenizers")}}))


main()
