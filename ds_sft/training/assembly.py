"""Puts together what a run is made of: its samples, and its model with its adapters."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ds_sft.config.arguments import TrainingArguments
from ds_sft.config.parse import Settings
from ds_sft.contracts import Family
from ds_sft.data.datasets import SampleDataset, load_datasets
from ds_sft.data.draft import Encoder
from ds_sft.model.folder import ModelFolder
from ds_sft.model.load import load_model
from ds_sft.model.lora import Adapters
from ds_sft.model.vocab import smart_tokenizer_and_embedding_resize
from ds_sft.training.adapters import earlier_adapter, frozen_as, with_adapters
from ds_sft.training.step import refuse_long_samples


def samples_of(
    settings: Settings, *, family: Family, tokenizer: PreTrainedTokenizerBase
) -> tuple[SampleDataset, SampleDataset | None]:
    """Make the datasets, and refuse samples that fit into no batch.

    Args:
        settings: Of the run.
        family: Card of the model.
        tokenizer: Of the model.

    Returns:
        The samples of training, and of evaluations where a file is given.

    Raises:
        ConfigError: When the budget of a batch does not hold every sample.
    """
    options = settings.data.layout_options(max_tokens=settings.training["model_max_length"])
    encoder, packing = Encoder(family, tokenizer, options), settings.training["packing"]
    train_dataset, eval_dataset = load_datasets(settings.data, encoder=encoder, counts_tokens=packing)
    refuse_long_samples(train_dataset, settings.training, family=family)
    return train_dataset, eval_dataset


def model_of(
    settings: Settings,
    *,
    args: TrainingArguments,
    folder: ModelFolder,
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    samples: SampleDataset,
) -> tuple[PreTrainedModel, Adapters | None]:
    """Make what the engine is given; it must not exist yet.

    Args:
        settings: Of the run.
        args: Tell precision, engine and seed.
        folder: The model as it is stored.
        family: Its card.
        tokenizer: Grown in place.
        samples: Of training; some adapters begin at what they show.

    Returns:
        The model, and its adapters where they train instead of it.
    """
    earlier = earlier_adapter(settings.lora)
    model = load_model(
        folder,
        family=family,
        args=args,
        attn_implementation=settings.model.attn_implementation,
        frozen=frozen_as(settings.lora, family=family, earlier=earlier),
    )
    added = smart_tokenizer_and_embedding_resize(family.special_tokens, family.other_tokens, tokenizer, model)
    adapters = with_adapters(
        *(model, added),
        settings=settings,
        args=args,
        folder=folder,
        family=family,
        tokenizer=tokenizer,
        samples=samples,
        earlier=earlier,
    )
    return model, adapters
