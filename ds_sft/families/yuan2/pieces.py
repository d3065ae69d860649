"""What Yuan2's tokenizer asks of its SentencePiece model: no prefix where text goes on, no control token from text."""

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import (  # type: ignore[attr-defined]  # protobuf makes them when imported
    ModelProto,
    TrainerSpec,
)

from ds_sft.families.yuan2.template import CONTROL_TOKENS


def without_dummy_prefix(processor: SentencePieceProcessor) -> SentencePieceProcessor:
    """Give a processor of the same model that puts no space before a text.

    Args:
        processor: With a model.

    Returns:
        Another one.
    """
    model = ModelProto.FromString(processor.serialized_model_proto())
    model.normalizer_spec.add_dummy_prefix = False
    return SentencePieceProcessor(model_proto=model.SerializeToString())


def refuse_control_tokens_from_text(processor: SentencePieceProcessor) -> None:
    """Refuse a model that can make a control token of ordinary text.

    A BPE model reaches a piece only by joining two others, or characters. The published models have no two that join to
    a control token, so no text needs to be searched for one.

    Args:
        processor: With a model.

    Raises:
        ValueError: When the model is not BPE, or when there is such a pair.
    """
    model = ModelProto.FromString(processor.serialized_model_proto())
    if model.trainer_spec.model_type != TrainerSpec.BPE:
        raise ValueError("tokenizer.model must be a BPE model, but is of another type")
    kinds = {piece.piece: piece.type for piece in model.pieces}
    normal, whole = ModelProto.SentencePiece.NORMAL, ModelProto.SentencePiece.USER_DEFINED
    made = {piece for piece, kind in kinds.items() if kind in (normal, whole)}

    def is_joined(name: str) -> bool:
        halves = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
        return any(all(len(half) == 1 or half in made for half in pair) for pair in halves)

    for name in CONTROL_TOKENS:
        if kinds.get(name) == whole or (kinds.get(name) == normal and is_joined(name)):
            raise ValueError(f"tokenizer.model must not make {name} of ordinary text, but has pieces that join to it")
