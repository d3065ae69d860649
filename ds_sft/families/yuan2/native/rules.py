"""What config.json of a dense Yuan2 may say, judged by its content alone: no torch, no transformers."""

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

log = logging.getLogger(__name__)

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
DEFAULT_SIZES = {
    "vocab_size": 135040,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
}
"""Of Yuan2-2B."""
_MIXTURE_WORDS = ("moe", "expert", "router")
"""Parts of the keys that only the mixture of experts (Yuan2-M32) has."""
_SCALINGS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_WITH_FACTOR = ("linear", "dynamic", "yarn", "llama3")
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
    return mixture or [
        *_size_faults(config),
        *_variant_faults(config),
        *_number_faults(config),
        *_derived_faults(config),
        *_position_faults(config),
    ]


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
    scaling, kind = _scaling(content)
    if kind != "default" and max_tokens > context * scaling.get("factor", 1.0):
        log.warning(
            "model_max_length: %d is beyond the context %d that config.json scales by %s: positions stay as they are",
            max_tokens,
            context,
            scaling.get("factor", 1.0),
        )
    if max_tokens <= context or kind != "default":
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
    if projected not in (None, config.get("hidden_size", DEFAULT_SIZES["hidden_size"])):
        named.append("attention_projection_size")
    if named:
        yield (
            f"model must be a dense Yuan2, but {', '.join(sorted(named))} describe a mixture of experts (Yuan2-M32), "
            "whose router and experts are not supported; take Yuan2-2B, 51B or 102B"
        )


def _size_faults(config: Mapping[str, Any]) -> Iterator[str]:
    sizes = {name: config.get(name, DEFAULT_SIZES[name]) for name in _SIZES}
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
    heads = config.get("num_attention_heads", DEFAULT_SIZES["num_attention_heads"])
    if config.get("num_key_value_heads") not in (None, heads):
        yield (
            f"num_key_value_heads must equal num_attention_heads {heads}, but is {config['num_key_value_heads']!r}; "
            "Yuan2 has no grouped queries"
        )


def _number_faults(config: Mapping[str, Any]) -> Iterator[str]:
    epsilon, context = config.get("rms_norm_eps", 1e-6), config.get("max_position_embeddings", DEFAULT_CONTEXT)
    if not _is_number(epsilon) or not 0 < epsilon < math.inf:
        yield f"rms_norm_eps must be a number above 0, but is {epsilon!r}; restore the file"
    if not _is_positive_integer(context):
        yield f"max_position_embeddings must be a whole number above 0, but is {context!r}; restore the file"
    padding, rows = config.get("pad_token_id"), config.get("vocab_size", DEFAULT_SIZES["vocab_size"])
    if padding is not None and _is_positive_integer(rows) and (not _is_integer(padding) or not 0 <= padding < rows):
        yield f"pad_token_id must be a token below vocab_size {rows}, but is {padding!r}; restore the file"


def _derived_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Judge keys that other models have: what this one computes, and code that a file must not choose."""
    width, heads = (config.get(name, DEFAULT_SIZES[name]) for name in ("hidden_size", "num_attention_heads"))
    is_sized = _is_positive_integer(width) and _is_positive_integer(heads)
    if is_sized and config.get("head_dim") not in (None, width // heads):
        yield f"head_dim must be hidden_size / num_attention_heads, but is {config['head_dim']!r}; remove it"
    for name in ("attn_implementation", "_attn_implementation"):
        if "/" in str(config.get(name)):
            yield f"{name} must not name a kernel to fetch, but is {config[name]!r}: no such code is run; remove it"


def _position_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Transformers only warns of these, and a name it does not know would leave the positions as they are."""
    for name in ("rope_scaling", "rope_parameters"):
        found = config.get(name)
        if found is not None and (not isinstance(found, dict) or any(isinstance(one, dict) for one in found.values())):
            yield f"{name} must be a flat JSON object, but is {found!r}; restore the file"
            return
    scaling, kind = _scaling(config)
    if kind not in _SCALINGS:
        yield f"rope_scaling: rope_type must be one of {', '.join(_SCALINGS)}, but is {kind!r}; choose one"
    factor = scaling.get("factor", None if kind in _WITH_FACTOR else 1.0)
    if not _is_number(factor) or not 1 <= factor < math.inf:
        yield f"rope_scaling: factor must be a number from 1, but is {factor!r}; restore the file"
    theta = scaling.get("rope_theta", config.get("rope_theta"))
    if theta is not None and (not _is_number(theta) or not 0 < theta < math.inf):
        yield f"rope_theta must be a number above 0, but is {theta!r}; restore the file"
    for name in ("short_factor", "long_factor") if kind == "longrope" else ():
        if not isinstance(scaling.get(name), list) or not all(map(_is_number, scaling[name])):
            yield f"rope_scaling: {name} must be a list of numbers, but is {scaling.get(name)!r}; restore the file"


def _scaling(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """Give the parameters of the positions and the name of their scaling."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return scaling, scaling.get("rope_type", scaling.get("type", "default"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive_integer(value: Any) -> bool:
    return _is_integer(value) and bool(value > 0)
