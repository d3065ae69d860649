"""Asks a fine-tuned checkpoint its own training questions: `ask.py CHECKPOINT CONVERSATIONS [--least N]`.

It uses plain transformers and nothing of ds_sft: what it prints is what any other program gets.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

NUM_QUESTIONS = 8


def main() -> None:
    """Print question, expected answer and answer; fail when too few are exact."""
    parser = argparse.ArgumentParser(description="Ask a checkpoint its training questions.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--least", type=int, default=0, help="exit with 1 when fewer answers are exact")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # as above
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    model = AutoModelForSeq2SeqLM.from_pretrained(arguments.checkpoint).eval()
    records = json.loads(arguments.conversations.read_text(encoding="utf-8"))[:NUM_QUESTIONS]
    num_exact = 0
    for record in records:
        question, expected = (turn["value"] for turn in record["conversations"][:2])
        answer = ask(question, tokenizer, model)
        is_exact = answer == expected
        num_exact += is_exact
        print(
            f"\nquestion: {question}\nexpected: {expected}\nanswer:   {answer}\n{'exact' if is_exact else 'DIFFERENT'}"
        )
    print(f"\n{num_exact} of {len(records)} answers are exact")
    sys.exit(num_exact < arguments.least)


def ask(question: str, tokenizer: Any, model: Any) -> str:
    """Give the greedy answer to one question.

    Args:
        question: The user's words.
        tokenizer: Of the checkpoint.
        model: Of the checkpoint.

    Returns:
        The answer without the newline that ends every answer in training.
    """
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        written = model.generate(**prompt, max_new_tokens=128, do_sample=False)[0]
    return str(tokenizer.decode(written, skip_special_tokens=True)).removesuffix("\n")


if __name__ == "__main__":
    main()
