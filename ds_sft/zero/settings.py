"""Reads a DeepSpeed JSON file and holds it against the flags, before any process group exists."""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ds_sft.errors import ConfigError, DsSftError, MissingInputError

_KNOWN_KEYS = frozenset(
    (
        "activation_checkpointing",
        "aio",
        "autotuning",
        "bf16",
        "checkpoint",
        "comet",
        "comms_logger",
        "communication_data_type",
        "compile",
        "csv_monitor",
        "data_efficiency",
        "data_parallel_size",
        "data_types",
        "dataloader_drop_last",
        "datastates_ckpt",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "expert_parallel",
        "flops_profiler",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_allreduce_op",
        "gradient_clipping",
        "gradient_predivide_factor",
        "hybrid_engine",
        "log_level",
        "managed_gradient_accumulation",
        "memory_breakdown",
        "optimizer",
        "pipeline",
        "prescale_gradients",
        "scheduler",
        "seq_parallel_communication_data_type",
        "sequence_parallel_size",
        "steps_per_print",
        "tensor_parallel",
        "tensorboard",
        "timers",
        "torch_autocast",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "use_data_before_expert_parallelism",
        "vocabulary_size",
        "wall_clock_breakdown",
        "wandb",
        "weight_quantization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    )
)
_PARTITIONS_PARAMETERS = 3
_POSITION = re.compile(r"\(char (\d+)\)")


def read_deepspeed_config(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file.

    Args:
        path: The file given to `--deepspeed`.

    Returns:
        Its content.

    Raises:
        MissingInputError: When there is no such file.
        ConfigError: When it is not a JSON object; names the byte.
    """
    if not path.is_file():
        raise MissingInputError(f"deepspeed: file must exist, but {path} does not; see ds_configs/ for six of them")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_double_keys)
    except (ValueError, RecursionError) as error:
        found = _POSITION.search(str(error))
        place = f"byte {found[1]}: " if found else ""
        raise ConfigError(f"{path}: must be a JSON object, but: {place}{error}; mend it") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a JSON object, but is a {type(content).__name__}; see ds_configs/")
    return content


def deepspeed_faults(
    config: Mapping[str, Any], *, path: Path, training: Mapping[str, Any], world_size: int
) -> list[DsSftError]:
    """Hold a DeepSpeed config against the flags.

    Args:
        config: Content of the file.
        path: The file, for the messages.
        training: Values of the training flags.
        world_size: Number of ranks.

    Returns:
        One error for each contradiction.
    """
    lines = [
        *_unknown_keys(config),
        *_shape_faults(config),
        *_batch_faults(config, training, world_size),
        *_precision_faults(config, training),
        *_overflow_faults(config),
        *_mirrored_faults(config, training),
        *_zero_faults(config),
    ]
    return [ConfigError(f"{path}: {line}") for line in lines]


def partitions_parameters(config: Mapping[str, Any]) -> bool:
    """Tell whether no rank holds whole weights under a DeepSpeed config.

    Args:
        config: Content of the file; empty without one.

    Returns:
        True for ZeRO-3.
    """
    return bool(_section(config, "zero_optimization").get("stage", 0) == _PARTITIONS_PARAMETERS)


def write_resolved(config: Mapping[str, Any], *, into: Path) -> Path:
    """Write the config that the engine really ran with, every "auto" replaced.

    Args:
        config: From the engine.
        into: The run's folder.

    Returns:
        The written file.
    """
    path = into / "ds_sft.resolved.deepspeed.json"
    # accelerate silences DeepSpeed's own step report with an infinite interval, which JSON has no word for.
    plain = {key: value for key, value in config.items() if value != math.inf}
    # A link of this name may lead out of the folder.
    path.unlink(missing_ok=True)
    with path.open("x", encoding="utf-8") as stream:
        stream.write(json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n")
    return path


def _no_double_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"key {min(twice)!r} stands there twice")
    return dict(pairs)


def _is_set(value: Any) -> bool:
    return value is not None and value != "auto"


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Give an inner object; an empty one where it is missing or `_shape_faults` has a fault to tell."""
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _shape_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Check that what must be an object is one."""
    for parent, prefix, name in (
        (config, "", "bf16"),
        (config, "", "fp16"),
        (config, "", "optimizer"),
        (config, "", "zero_optimization"),
        (_section(config, "optimizer"), "optimizer.", "params"),
    ):
        if name in parent and not isinstance(parent[name], dict):
            yield f"{prefix}{name}: must be a JSON object, but is {parent[name]!r}; see ds_configs/"


def _unknown_keys(config: Mapping[str, Any]) -> Iterator[str]:
    for key in config:
        if key not in _KNOWN_KEYS:
            close = difflib.get_close_matches(key, _KNOWN_KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "remove it"
            yield f"{key}: key must be one of DeepSpeed's, but is not; {hint}"


def _batch_faults(config: Mapping[str, Any], training: Mapping[str, Any], world_size: int) -> Iterator[str]:
    """Check micro batch x accumulation x ranks = global batch, each against its flag."""
    micro = training["per_device_train_batch_size"]
    accumulation = training["gradient_accumulation_steps"]
    expected = {
        "train_micro_batch_size_per_gpu": (micro, f"--per_device_train_batch_size {micro}"),
        "gradient_accumulation_steps": (accumulation, f"--gradient_accumulation_steps {accumulation}"),
        "train_batch_size": (
            micro * accumulation * world_size,
            f"{micro} per device x {accumulation} accumulation x {world_size} ranks",
        ),
    }
    for key, (value, told) in expected.items():
        if _is_set(config.get(key)) and config[key] != value:
            yield f'{key}: must agree with the flags ({told}), but is {config[key]!r}; set it to "auto"'


def _precision_faults(config: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[str]:
    for name in ("bf16", "fp16"):
        enabled = _section(config, name).get("enabled")
        flag = bool(training[name])
        if _is_set(enabled) and bool(enabled) != flag:
            yield f'{name}.enabled: must agree with --{name} {flag}, but is {enabled!r}; set it to "auto"'


def _overflow_faults(config: Mapping[str, Any]) -> Iterator[str]:
    if _section(config, "bf16").get("check_grad_overflow") is False:
        yield (
            "bf16.check_grad_overflow: must not be false: DeepSpeed would step on gradients that are NaN, and every "
            "weight with them; remove it"
        )


def _mirrored_faults(config: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[str]:
    """Check the values that stand in the file and in a flag."""
    parameters = _section(_section(config, "optimizer"), "params")
    betas = [training["adam_beta1"], training["adam_beta2"]]
    pairs = [
        ("optimizer.params.betas", parameters.get("betas"), "adam_beta1 and --adam_beta2", betas),
        ("gradient_clipping", config.get("gradient_clipping"), "max_grad_norm", training["max_grad_norm"]),
        ("optimizer.params.lr", parameters.get("lr"), "learning_rate", training["learning_rate"]),
        ("optimizer.params.eps", parameters.get("eps"), "adam_epsilon", training["adam_epsilon"]),
        ("optimizer.params.weight_decay", parameters.get("weight_decay"), "weight_decay", training["weight_decay"]),
    ]
    for key, value, flag, wanted in pairs:
        if _is_set(value) and value != wanted:
            yield f'{key}: must agree with --{flag} {wanted}, but is {value!r}; set it to "auto"'
    optimizer = _section(config, "optimizer")
    if optimizer and isinstance(optimizer.get("params", {}), dict):
        for name, flag in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
            if name not in parameters:
                # DeepSpeed would take a default of its own, and the flag would do nothing.
                rule = f"must be there for --{flag} {training[flag]}, but is not"
                yield f'optimizer.params.{name}: {rule}; set it to "auto"'


def _zero_faults(config: Mapping[str, Any]) -> Iterator[str]:
    section = _section(config, "zero_optimization")
    stage = section.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        yield f"zero_optimization.stage: must be 0, 1, 2 or 3, but is {stage!r}; see ds_configs/README.md"
    elif section.get("offload_param") and stage < _PARTITIONS_PARAMETERS:
        yield f"zero_optimization.offload_param: needs stage 3, but stage is {stage}; remove it or use stage 3"
    else:
        yield from _zero_section_faults(section)


def _zero_section_faults(section: Mapping[str, Any]) -> Iterator[str]:
    """Let DeepSpeed's own schema judge the section; transformers would blame the weights for a fault in it."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**{key: value for key, value in section.items() if _is_set(value)})
    except ValidationError as error:
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"])
            yield f"zero_optimization.{key}: {fault['msg']}, but is {fault['input']!r}; see ds_configs/README.md"
