"""The settings of an adapter on disk, each held against its rule; what we do not have is refused instead of dropped."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta
from peft import LoraConfig
from peft.utils.constants import CONFIG_NAME
from peft.utils.other import get_pattern_key

from ds_sft.errors import MissingInputError, ModelError, raise_together
from ds_sft.model.folder import read_json, refuse_links_out

MOST_RANK = 65536
_MOST_REPEATS = 2
"""In a pattern of names. The time of a match grows with a power of the name's length, that of the repeats; without
groups it cannot grow faster."""
Rank = Annotated[int, Meta(ge=1, le=MOST_RANK)]


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What adapter_config.json says of a LoRA adapter, in peft's words.

    Args:
        peft_type: The kind of adapter.
        r: Rank.
        lora_alpha: Scale before the division by the rank.
        target_modules: Ends of module names, or `all-linear`.
        base_model_name_or_path: The model it was trained on.
        lora_dropout: Dropout in front of the adapters.
        bias: Biases that train.
        rank_pattern: Regular expression of module names -> rank.
        alpha_pattern: Regular expression of module names -> scale.
        trainable_token_indices: Module -> tokens whose rows train, in the order of the file.
        use_rslora: Whether the scale is divided by the root of the rank.
        use_dora: Whether the length of each weight row trains apart.
        init_lora_weights: How the adapters began.
    """

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: float
    target_modules: list[str] | Literal["all-linear"]
    base_model_name_or_path: str | None = None
    lora_dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    trainable_token_indices: dict[str, list[Annotated[int, Meta(ge=0, lt=2**31)]]] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "eva"] = True

    @property
    def token_ids(self) -> list[int]:
        """Tokens whose rows train, ascending."""
        return sorted({number for ids in (self.trainable_token_indices or {}).values() for number in ids})

    def scale_of(self, path: str) -> float:
        """Give the factor of the product of two adapters.

        Args:
            path: Of the module in the model; patterns are matched as peft does.

        Returns:
            alpha / r, or alpha / sqrt(r).
        """
        ranks, alphas = self.rank_pattern or {}, self.alpha_pattern or {}
        rank = ranks.get(get_pattern_key(list(ranks), path), self.r)
        alpha = alphas.get(get_pattern_key(list(alphas), path), self.lora_alpha)
        return alpha / (rank**0.5 if self.use_rslora else rank)

    def in_words_of_peft(self) -> LoraConfig:
        """Give the config of adapters of this shape that begin at zero.

        Returns:
            The config.
        """
        whole: Any = int(self.lora_alpha) if self.lora_alpha.is_integer() else self.lora_alpha
        return LoraConfig(
            r=self.r,
            lora_alpha=whole,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules,
            bias=self.bias,
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            rank_pattern=dict(self.rank_pattern or {}),
            alpha_pattern=dict(self.alpha_pattern or {}),
        )


class HeldAs(msgspec.Struct, frozen=True):
    """The LoRA flags of the run that trained an adapter.

    Args:
        q_lora: Whether its model was held in 4 bits.
    """

    q_lora: bool = False


class TrainedOn(msgspec.Struct, frozen=True):
    """What the manifest of an adapter tells of its run.

    Args:
        model: Fingerprint of the model.
        bf16: Whether it was held in bf16, or quantised from it.
        adapters: The LoRA flags.
    """

    model: str
    bf16: bool = False
    adapters: HeldAs | None = None

    @property
    def is_quantised(self) -> bool:
        """Whether the model was held in 4 bits."""
        return self.adapters is not None and self.adapters.q_lora


_PATTERNS = f"regular expressions without groups and with at most {_MOST_REPEATS} repeats"
_RULES = {
    "peft_type": "be LORA",
    "r": f"be a whole number from 1 to {MOST_RANK}",
    "lora_alpha": "be a number above 0",
    "target_modules": "be a list of names or all-linear",
    "base_model_name_or_path": "be a name or null",
    "lora_dropout": "be a number from 0 to below 1",
    "bias": "be none, all or lora_only",
    "rank_pattern": f"map {_PATTERNS} to whole numbers from 1 to {MOST_RANK}",
    "alpha_pattern": f"map {_PATTERNS} to numbers above 0",
    "trainable_token_indices": "map modules to lists of different token ids from 0 on",
    "use_rslora": "be true or false",
    "use_dora": "be true or false",
    "init_lora_weights": "be a beginning that leaves the model as it is (true, false, gaussian, orthogonal or eva)",
}
_REMEDIES = {
    "peft_type": "train it with peft",
    "target_modules": "write the names that the expression matches",
    "rank_pattern": "write the names that the expressions match",
    "alpha_pattern": "write the names that the expressions match",
    "trainable_token_indices": "write the module before its ids",
    "init_lora_weights": "convert it with peft's path_initial_model_for_weight_conversion",
}
_WITHOUT_MEANING = frozenset(
    {
        *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "megatron_core", "layers_pattern"),
        *("qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    }
)
"""What peft writes beside, and what only told how an adapter began."""


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read the settings of an adapter; nothing that it names is imported.

    Args:
        folder: Of the adapter.

    Returns:
        Its settings.

    Raises:
        MissingInputError: When there are none.
        ModelError: When one breaks its rule or is of a part of peft that is not ours, each in one line.
    """
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise MissingInputError(f"{folder}: must hold {CONFIG_NAME}, but does not; name the folder of an adapter")
    refuse_links_out(folder)
    content = read_json(file)
    faults = _value_faults(content, file)
    # Another kind of adapter breaks every other rule too.
    raise_together(
        [faults["peft_type"]] if "peft_type" in faults else [*faults.values(), *_foreign_faults(content, file)]
    )
    return msgspec.convert(content, AdapterConfig)


def trained_on(facts: Mapping[str, Any], *, where: Path) -> TrainedOn:
    """Read what a manifest tells of the run that trained an adapter.

    Args:
        facts: Of the manifest.
        where: Its folder, for the message.

    Returns:
        The run.

    Raises:
        ModelError: When it does not tell the model, or a fact has another type.
    """
    try:
        return msgspec.convert(facts.get("fingerprint"), TrainedOn)
    except msgspec.ValidationError as error:
        raise ModelError(
            f"{where / 'MANIFEST.json'}: fingerprint must tell the model and the flags of a run, but: {error}; export "
            "the adapter anew"
        ) from error


def _value_faults(content: Mapping[str, Any], file: Path) -> dict[str, ModelError]:
    """Give one error for each field that breaks its rule."""
    faults = {}
    kinds = get_type_hints(AdapterConfig, include_extras=True)
    for entry in msgspec.structs.fields(AdapterConfig):
        name, rule = entry.name, _RULES[entry.name]
        remedy = _REMEDIES.get(name, "restore the file")
        if name not in content:
            if entry.required:
                faults[name] = ModelError(f"{file}: {name} must {rule}, but is not there; {remedy}")
        elif not _fits(name, content[name], kinds[name]):
            faults[name] = ModelError(f"{file}: {name} must {rule}, but is {shortened(content[name])}; {remedy}")
    return faults


def _fits(name: str, value: Any, kind: Any) -> bool:
    """Tell whether a value has the type of its field, and what no type can say."""
    try:
        found = msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError):
        return False
    if name == "lora_alpha":
        return _is_scale(found)
    if name == "alpha_pattern" and not all(map(_is_scale, (found or {}).values())):
        return False
    if name in ("rank_pattern", "alpha_pattern"):
        return all(map(_is_quick_expression, found or {}))
    if name == "trainable_token_indices":
        return all(ids and len(set(ids)) == len(ids) for ids in (found or {}).values())
    return name != "target_modules" or bool(found)


def _is_scale(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _is_quick_expression(text: str) -> bool:
    """Tell whether peft may match a file's expression: a hostile one, such as `(.+)+!`, would never come to an end."""
    if "(" in text or sum(map(text.count, "*+?{")) > _MOST_REPEATS:
        return False
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _foreign_faults(content: Mapping[str, Any], file: Path) -> Iterator[ModelError]:
    for name in sorted(set(content) - set(_RULES) - _WITHOUT_MEANING):
        if content[name]:
            yield ModelError(f"{file}: {name} must be empty, but is {shortened(content[name])}; go on with it in peft")
