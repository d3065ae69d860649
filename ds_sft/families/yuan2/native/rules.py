"""What config.json of a dense Yuan2 may say, judged by its content alone: no torch, no transformers."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_DEFAULTS = {
    "vocab_size": 135040,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
}
_MIXTURE_WORDS = ("moe", "expert", "router")
"""Parts of the keys that only the mixture of experts (Yuan2-M32) has."""
_SCALINGS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
DEFAULT_CONTEXT = 8192


def config_faults(config: Mapping[str, Any]) -> list[str]:
    """Tell what the native model cannot be.

    Args:
        config: Content of config.json.

    Returns:
        One line for each fault, without the file's name.
    """
    mixture = list(_mixture_faults(config))
    # A mixture of experts breaks the other rules too, and its user can mend none of them.
    return mixture or [*_size_faults(config), *_variant_faults(config), *_position_faults(config)]


def fit_context(config: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
    """Scale the rotary positions linearly where sequences are longer than the model's context.

    The factor is FastChat's: `ceil(max_tokens / max_position_embeddings)` (train_yuan2.py, after Chen et al. 2023,
    "Extending Context Window of Large Language Models via Position Interpolation"). A config that scales its positions
    already is left as it is.

    Args:
        config: Content of config.json.
        max_tokens: Most tokens of one sequence.

    Returns:
        The content with `rope_scaling` where it is needed.
    """
    content = dict(config)
    context = content.get("max_position_embeddings") or DEFAULT_CONTEXT
    if max_tokens <= context or _scaling(content)[1] != "default":
        return content
    # One of the two keys must rule: transformers prefers rope_scaling over rope_parameters.
    theta = (content.pop("rope_parameters", None) or {}).get("rope_theta", content.get("rope_theta"))
    content["rope_scaling"] = {"rope_type": "linear", "factor": float(math.ceil(max_tokens / context))}
    if theta is not None:
        content["rope_scaling"]["rope_theta"] = theta
    return content


def _mixture_faults(config: Mapping[str, Any]) -> Iterator[str]:
    public = {key.lower(): key for key, value in config.items() if value and not key.startswith("_")}
    named = [key for lower, key in public.items() if any(word in lower for word in _MIXTURE_WORDS)]
    projected = config.get("attention_projection_size")
    if projected not in (None, config.get("hidden_size", _DEFAULTS["hidden_size"])):
        named.append("attention_projection_size")
    if named:
        yield (
            f"model must be a dense Yuan2, but {', '.join(sorted(named))} describe a mixture of experts (Yuan2-M32), "
            "whose router and experts are not supported; take Yuan2-2B, 51B or 102B"
        )


def _size_faults(config: Mapping[str, Any]) -> Iterator[str]:
    sizes = {name: config.get(name, _DEFAULTS[name]) for name in _SIZES}
    wrong = [name for name, size in sizes.items() if not _is_positive_integer(size)]
    for name in wrong:
        yield f"{name} must be a whole number above 0, but is {sizes[name]!r}; restore the file"
    if wrong:
        return
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if hidden % heads or (hidden // heads) % 2:
        yield (
            f"hidden_size must be an even multiple of num_attention_heads, but is {hidden} for {heads} heads; "
            "restore the file"
        )
    elif hidden % 2:
        yield f"hidden_size must be even, because the filter halves it, but is {hidden}; restore the file"


def _variant_faults(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("use_shareqk"):
        yield "use_shareqk must be false, but is true: no published checkpoint has it; take one without"
    heads = config.get("num_attention_heads", _DEFAULTS["num_attention_heads"])
    if config.get("num_key_value_heads") not in (None, heads):
        yield (
            f"num_key_value_heads must equal num_attention_heads {heads}, but is {config['num_key_value_heads']!r}; "
            "Yuan2 has no grouped queries"
        )


def _position_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Transformers only warns of these, and a name it does not know would leave the positions as they are."""
    scaling, kind = _scaling(config)
    if kind not in _SCALINGS:
        yield f"rope_scaling: rope_type must be one of {', '.join(_SCALINGS)}, but is {kind!r}; choose one"
    factor = scaling.get("factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < math.inf:
        yield f"rope_scaling: factor must be a number from 1, but is {factor!r}; restore the file"


def _scaling(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """Give the parameters of the positions and the name of their scaling."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return scaling, scaling.get("rope_type", scaling.get("type", "default"))


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
