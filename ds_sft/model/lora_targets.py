"""Which layers get an adapter, and what stands against it; told on a model without storage, before weights are read."""

from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel

from ds_sft.errors import ConfigError

ALL_LINEAR = "all-linear"


def target_faults(
    model: PreTrainedModel, targets: Sequence[str] | str, *, rank: int, init: str | None, adds_tokens: bool
) -> Iterator[ConfigError]:
    """Hold the layers that shall get an adapter against the model.

    Args:
        model: With storage or without.
        targets: Ends of module names, or `all-linear`.
        rank: Of the adapters.
        init: What they begin with that is computed from matrices; None for zero.
        adds_tokens: Whether rows of new tokens train too.

    Yields:
        One error for each target that is no linear layer, that is the head, or whose rank is too large.
    """
    linear = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = (
        []
        if targets == ALL_LINEAR
        else [name for name in targets if not any(is_named(path, [name]) for path in linear)]
    )
    known = ", ".join(sorted({path.rpartition(".")[-1] for path in linear}))
    for name in unknown:
        yield ConfigError(
            f"lora_target_modules: every name must be a linear layer of the model, but {name!r} is none; there "
            f"are {known}"
        )
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    chosen = {path: module for path, module in linear.items() if _is_chosen(path, targets, is_head=module is head)}
    for path, module in chosen.items():
        if adds_tokens and module is head:
            yield ConfigError(
                f"lora_target_modules: must not have the head where new tokens are added, because their rows train as "
                f"a whole, but has {path!r}; leave it out"
            )
    sides = {path: min(module.in_features, module.out_features) for path, module in chosen.items()}
    narrowest = min(sides, key=sides.__getitem__, default=None)
    if init and narrowest is not None and rank > sides[narrowest]:
        yield ConfigError(
            f"lora_r: must be at most {sides[narrowest]}, the smaller side of {narrowest}, because {init} takes so "
            f"many vectors out of it, but is {rank}; lower it, or leave lora_init out"
        )


def _is_chosen(path: str, targets: Sequence[str] | str, *, is_head: bool) -> bool:
    return not is_head if targets == ALL_LINEAR else is_named(path, targets)


def is_named(path: str, names: Sequence[str]) -> bool:
    """Tell whether a module is meant, as peft and transformers read such names.

    Args:
        path: Of the module.
        names: Ends of module names.

    Returns:
        Whether the path is one of them, or ends with one.
    """
    return any(path == name or path.endswith(f".{name}") for name in names)
