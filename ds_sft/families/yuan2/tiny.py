"""Makes a tiny Yuan2-shaped checkpoint, with a tokenizer of its own, for the quick start and the tests."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

from ds_sft.families.yuan2.native.configuration import Yuan2Config
from ds_sft.families.yuan2.native.model import Yuan2ForCausalLM
from ds_sft.families.yuan2.template import CONTROL_TOKENS, EOD, SEP

_SEED = 20260
_MERGED_PIECES = 500
_NOT_IN_THE_MODEL = ("<mask>", "<predict>", "<FIM_SUFFIX>", "<FIM_PREFIX>", "<FIM_MIDDLE>")
"""The published model has no piece for these either; the tokenizer adds them behind all pieces."""
_SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "model_max_length": 2048,
}
_OFFICIAL = {
    "architectures": ["YuanForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_yuan.YuanConfig",
        "AutoModelForCausalLM": "yuan_hf_model.YuanForCausalLM",
    },
    "causal_mask": True,
    "dropout": 0.1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "yuan",
    "reset_attention_mask": True,
    "reset_position_ids": True,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "tokenizer_class": "YuanTokenizer",
    "torch_dtype": "float32",
    "use_cache": True,
    "use_flash_attention": False,
    "use_loss_mask": False,
}
"""What the published files say in every size; some of it the native model accepts and does not need."""


def write_tiny_checkpoint(folder: Path, texts: Sequence[str]) -> None:
    """Write config, weights and tokenizer files as a hub folder of Yuan2 has them.

    The head is tied, and the embedding table has no row to spare, so training has to grow it.

    Args:
        folder: Made when absent; files of these names in it are replaced.
        texts: What the SentencePiece model is trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = _sentencepiece_model(texts)
    (folder / "tokenizer.model").write_bytes(model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    end, before_answer = pieces.piece_to_id(EOD), pieces.piece_to_id(SEP)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "eod_token_id"), end)
    # The published files name the wrong `sep_token_id`; the right one is called `sep_token`.
    ids |= {"sep_token_id": end, "eod_token": end, "sep_token": before_answer}
    content = {**_OFFICIAL, **_SHAPE, **ids, "vocab_size": pieces.get_piece_size()}
    torch.manual_seed(_SEED)
    network = Yuan2ForCausalLM(Yuan2Config.from_dict(content))
    weights = {name: tensor for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False}
    for name, written in (("config.json", content), ("tokenizer_config.json", tokenizer)):
        (folder / name).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def _sentencepiece_model(texts: Sequence[str]) -> bytes:
    """Train byte pairs with Yuan's settings: bytes for unknown characters, no normalisation, a space in front."""
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    model = io.BytesIO()
    control = [token for token in CONTROL_TOKENS if token not in _NOT_IN_THE_MODEL]
    letters = len(set("".join(lines)))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=_MERGED_PIECES + letters + len(control) + 256 + 3,
        control_symbols=control,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
