"""The whole job in one function, in the order in which it happens; `deepspeed ds_sft/train.py` runs this file."""

import sys
from collections.abc import Sequence

from ds_sft.config.parse import build_training_arguments, parse
from ds_sft.config.resolved import show_settings, write_settings
from ds_sft.data.account import write_counters
from ds_sft.data.datasets import load_datasets
from ds_sft.data.draft import Encoder
from ds_sft.families import family_of
from ds_sft.model.folder import find_model_folder
from ds_sft.model.load import load_model
from ds_sft.model.vocab import smart_tokenizer_and_embedding_resize
from ds_sft.reporting import run, set_up_logging
from ds_sft.training.device import on_this_device
from ds_sft.training.preflight import check, checkpoint_to_resume
from ds_sft.training.trainer import SftTrainer
from ds_sft.zero import distributed


def train(arguments: Sequence[str]) -> SftTrainer:
    """Fine-tune a checkpoint on conversations and export it.

    Args:
        arguments: An optional YAML recipe, then flags.

    Returns:
        The trainer after training; the model is in its output folder.
    """
    set_up_logging()
    asked = parse(arguments)
    settings = on_this_device(asked)
    folder = find_model_folder(settings.model.model_name_or_path, cache_dir=settings.training["cache_dir"])
    family = family_of(folder.config, folder=folder.path)
    check(settings, family=family, folder=folder, world_size=distributed.world_size())
    show_settings(settings)

    # Data before the model: a file that teaches nothing must not cost a model load.
    tokenizer = family.load_tokenizer(folder.path)
    options = settings.data.layout_options(max_tokens=settings.training["model_max_length"])
    encoder = Encoder(family, tokenizer, options)
    train_dataset, eval_dataset = load_datasets(settings.data, encoder=encoder)

    if settings.training["deepspeed"]:
        distributed.start(on_cpu=settings.training["use_cpu"])
    args = build_training_arguments(settings)
    model = load_model(folder, family=family, args=args, attn_implementation=settings.model.attn_implementation)
    smart_tokenizer_and_embedding_resize(family.special_tokens, family.other_tokens, tokenizer, model)

    trainer = SftTrainer(
        model=model,
        args=args,
        family=family,
        tokenizer=tokenizer,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        padding_side=settings.model.padding_side,
    )
    if args.should_save:
        # As asked, not as fitted to this machine: the same recipe uses a GPU where there is one.
        write_settings(asked, into=settings.output_dir)
        write_counters(train_dataset.account, eval_dataset.account if eval_dataset else None, into=settings.output_dir)
    result = trainer.train(resume_from_checkpoint=checkpoint_to_resume(settings))
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    trainer.save_model()
    return trainer


def main() -> None:
    """Train with the command line's arguments and leave with a documented exit code."""
    run(lambda: train(sys.argv[1:]))
    distributed.leave()


if __name__ == "__main__":
    main()
