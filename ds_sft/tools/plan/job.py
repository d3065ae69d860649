"""The run that is planned: what of its flags, its model and its data decides memory, steps, disk and time."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ds_sft.config.aliases import translate
from ds_sft.config.budgets import budgets_of
from ds_sft.config.recipe import recipe_arguments
from ds_sft.config.sources import DataArguments, LoraArguments, ModelArguments
from ds_sft.contracts import Family, ModelShape
from ds_sft.errors import ConfigError, UsageError, raise_together
from ds_sft.families import all_families, family_of
from ds_sft.model.costs import ADAM_AVERAGES
from ds_sft.model.folder import read_config
from ds_sft.tools.flags import LimitArguments
from ds_sft.tools.inputs import Words, read_flags
from ds_sft.tools.plan.engine import Engine, engine_of
from ds_sft.tools.plan.states import Adapters, Load
from ds_sft.tools.recipes import config_folder, recipe_text, shipped_recipes
from ds_sft.zero.settings import read_deepspeed_config

log = logging.getLogger(__name__)

_ALL_LINEAR = ["all-linear"]
_AVERAGES_IN_8_BITS = 2


@dataclass
class RunArguments:
    """Flags that training shares with transformers' own, with the defaults of training."""

    output_dir: str | None = None
    deepspeed: str | None = None
    bf16: bool = False
    fp16: bool = False
    activation_checkpointing: bool | None = None
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    packing: bool = True
    tokens_per_batch: int | None = None
    target_tokens_per_batch: int | None = None
    num_train_epochs: float = 3.0
    max_steps: int = -1
    optim: str = "adamw_torch_fused"
    save_strategy: str = "steps"
    save_total_limit: int | None = 3
    save_only_model: bool = False
    save_dtype: str | None = None


_GROUPS: tuple[Any, ...] = (ModelArguments, DataArguments, LoraArguments, LimitArguments, RunArguments)
_WITHOUT_EFFECT = frozenset(
    {
        "trust_remote_code",
        "padding_side",
        "attn_implementation",
        "eval_data_path",
        "lazy_preprocess",
        "preprocessed_path",
    }
    | {"lora_alpha", "lora_dropout", "use_rslora", "lora_init", "lora_bias"}
)


@dataclass(frozen=True)
class Job:
    """A run.

    Args:
        text: The recipe, as YAML; empty without one.
        words: The recipe and the flags.
        model: Which model.
        data: Which conversations.
        lora: Which adapters.
        run: The other flags.
        max_tokens: Of one sequence.
        family: Card of the model.
        shape: Of the model.
        engine: DeepSpeed's settings; None without it.
        num_ranks: GPUs in all.
        num_hosts: That share them.
        recipe_gpus: GPUs that a shipped recipe is for; None for another one.
    """

    text: str
    words: Words
    model: ModelArguments
    data: DataArguments
    lora: LoraArguments
    run: RunArguments
    max_tokens: int
    family: Family
    shape: ModelShape
    engine: Engine | None
    num_ranks: int
    num_hosts: int
    recipe_gpus: int | None = None

    @property
    def adapters(self) -> Adapters | None:
        """What trains in the place of the model."""
        if self.lora.lora_r is None:
            return None
        targets = self.lora.lora_target_modules or list(self.family.lora_targets)
        return Adapters(
            rank=self.lora.lora_r,
            targets=None if targets == _ALL_LINEAR else targets,
            is_quantised=self.lora.q_lora,
            kept_in_16_bits=self.family.kept_in_16_bits,
            has_magnitudes=self.lora.use_dora,
        )

    @property
    def budgets(self) -> tuple[int, ...]:
        """Most tokens of a micro-batch on each side."""
        given = {**vars(self.run), "model_max_length": self.max_tokens}
        return budgets_of(given, is_encoder_decoder=self.family.is_encoder_decoder)

    @property
    def load(self) -> Load:
        """What a rank computes at a time, where every token is supervised and both sides are full."""
        *source, target = self.budgets
        return Load(
            source_tokens=sum(source),
            target_tokens=target,
            supervised_tokens=target,
            longest=min(self.max_tokens, max(self.budgets)),
            accumulation=self.run.gradient_accumulation_steps,
            is_checkpointing=bool(self.run.activation_checkpointing),
            computes="16 bits" if self.run.bf16 or self.run.fp16 else "fp32",
            averages=_averages(self.run.optim),
        )


def read_job(arguments: Sequence[str], *, num_gpus: int | None, num_hosts: int) -> Job:
    """Read a command line.

    Args:
        arguments: A recipe's file, or the name of one that is shipped, or neither; then flags of training.
        num_gpus: In all; None for those of the shipped recipe, or one.
        num_hosts: That share them.

    Returns:
        The run.
    """
    text, words, shipped_for = _words(arguments)
    model, data, lora, limit, run = read_flags(
        words, groups=_GROUPS, without_effect=_WITHOUT_EFFECT, verb="plan", about="the plan"
    )
    num_ranks = num_gpus or shipped_for or 1
    raise_together(list(_faults(run, lora, num_ranks, num_hosts)))
    config = _config(model.model_name_or_path, cache_dir=limit.cache_dir)
    family = family_of(config, folder=Path(model.model_name_or_path))
    shape = family.shape_of(config)
    raise_together([ConfigError(f"{model.model_name_or_path}: {fault}") for fault in family.config_faults(config)])
    return Job(
        text=text,
        words=words,
        model=model,
        data=data,
        lora=lora,
        run=run,
        max_tokens=limit.model_max_length,
        family=family,
        shape=shape,
        engine=_engine(run.deepspeed, width=shape.width),
        num_ranks=num_ranks,
        num_hosts=num_hosts,
        recipe_gpus=shipped_for,
    )


def with_micro_batch(job: Job, *, divided_by: int, accumulation: int, is_checkpointing: bool) -> Job:
    """Give the same run with other micro-batches.

    Args:
        job: The run.
        divided_by: How much smaller they are.
        accumulation: How many make a step.
        is_checkpointing: Whether layers are computed again.

    Returns:
        The run.
    """
    old = job.run

    def smaller(budget: int | None) -> int | None:
        return None if budget is None else max(job.max_tokens, budget // divided_by)

    run = replace(
        old,
        per_device_train_batch_size=max(1, old.per_device_train_batch_size // divided_by),
        tokens_per_batch=smaller(old.tokens_per_batch),
        target_tokens_per_batch=smaller(old.target_tokens_per_batch),
        gradient_accumulation_steps=accumulation,
        activation_checkpointing=is_checkpointing,
    )
    return replace(job, run=run)


def _words(arguments: Sequence[str]) -> tuple[str, Words, int | None]:
    """Find the recipe, and give its text, both parts of the command line, and the GPUs that a shipped one is for."""
    given = list(arguments)
    if not given or given[0].startswith("-"):
        return "", Words("", [], list(translate(given).arguments)), None
    name, flags = given[0], list(translate(given[1:]).arguments)
    file, num_gpus = Path(name), None
    if file.is_file():
        text = file.read_text(encoding="utf-8", errors="replace")
    elif file.suffix or "/" in name:
        recipe_arguments(file)
        raise AssertionError(f"{file} is no file, and was read all the same")
    else:
        text = recipe_text(name)
        file = config_folder() / "recipes" / f"{name}.yaml"
        num_gpus = next(recipe.num_gpus for recipe in shipped_recipes() if recipe.name == name)
    recipe = [*translate(recipe_arguments(file)).arguments]
    return text, Words(name, recipe, flags), num_gpus


def _config(name: str, *, cache_dir: str | None) -> Mapping[str, Any]:
    """Read config.json, but know that of a published model without asking the hub."""
    published = {key: content for family in all_families() for key, content in family.published_configs.items()}
    if name.lower() in published and not Path(name).exists():
        return published[name.lower()]
    return read_config(name, cache_dir=cache_dir)


def _engine(deepspeed: str | None, *, width: int) -> Engine | None:
    if not deepspeed:
        return None
    path = Path(deepspeed).expanduser()
    if not path.is_file() and (config_folder().parent / path).is_file():
        path = config_folder().parent / path
    return engine_of(read_deepspeed_config(path), width=width, path=path)


def _faults(run: RunArguments, lora: LoraArguments, num_ranks: int, num_hosts: int) -> list[ConfigError | UsageError]:
    faults: list[ConfigError | UsageError] = []
    if num_ranks % num_hosts:
        faults.append(
            UsageError(f"hosts: must divide the GPUs, but {num_ranks} are not a multiple of {num_hosts}; give others")
        )
    if lora.lora_weight_path and lora.lora_r is None:
        faults.append(
            ConfigError(
                f"lora_weight_path: its rank is not looked up, but {lora.lora_weight_path} is to go on; add --lora_r"
            )
        )
    least = {
        "per_device_train_batch_size": run.per_device_train_batch_size,
        "gradient_accumulation_steps": run.gradient_accumulation_steps,
    }
    faults += [
        ConfigError(f"{name}: must be at least 1, but is {value}; give another value")
        for name, value in least.items()
        if value < 1
    ]
    return faults


def _averages(optim: str) -> int:
    if "adam" not in optim:
        return 0
    return _AVERAGES_IN_8_BITS if "8bit" in optim else ADAM_AVERAGES
