"""Asks a fine-tuned checkpoint its own training questions: `ask.py CHECKPOINT CONVERSATIONS [--least N]`.

It uses transformers' auto classes, so what it prints is what any other program gets; of ds_sft it needs the import
alone, which makes those classes know the models that transformers has not.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import ds_sft  # noqa: F401  # see above

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
    is_encoder_decoder = AutoConfig.from_pretrained(arguments.checkpoint).is_encoder_decoder
    auto_model: Any = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    model = auto_model.from_pretrained(arguments.checkpoint).eval()
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
        The answer without the newline that ends every answer in training where the family has one.
    """
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        written = model.generate(**prompt, max_new_tokens=128, do_sample=False)[0]
    if not model.config.is_encoder_decoder:
        # Such a model goes on writing behind the prompt.
        written = written[prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True)).removesuffix("\n")


if __name__ == "__main__":
    main()
