"""What decides the samples of a data file, as digests: two runs with the same ones get the same samples."""

import hashlib
import inspect
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ds_sft.data.content import digest
from ds_sft.data.draft import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LIBRARIES = ("msgspec", "sentencepiece", "tokenizers", "transformers")


def parts_of(path: Path, *, encoder: Encoder, num_data: int) -> dict[str, str]:
    """Give all that decides the samples of a data file.

    Args:
        path: The data file; its content counts, not its name or date.
        encoder: Family, tokenizer and layout.
        num_data: How many conversations; -1 for all.

    Returns:
        Name -> digest or value.
    """
    return {
        "data": digest(path),
        "tokenizer": _tokenizer_digest(encoder.tokenizer),
        "family": encoder.family.name,
        "layout": json.dumps(asdict(encoder.options), sort_keys=True),
        "num_data": str(num_data),
        "code": _code_digest(encoder),
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def _tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Digest what the tokenizer would save, added tokens included; a chat template changes no sample."""
    with tempfile.TemporaryDirectory(prefix="ds_sft-") as folder:
        tokenizer.save_pretrained(folder)
        return _files_digest(file for file in Path(folder).iterdir() if not file.name.startswith("chat_template"))


def _code_digest(encoder: Encoder) -> str:
    """Digest the modules between the bytes of a data file and its samples."""
    ours = Path(__file__).parent
    families = Path(inspect.getfile(encoder.family.lay_out)).parent
    return _files_digest([ours.parent / "contracts.py", *ours.glob("*.py"), *families.glob("*.py")])


def _files_digest(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for file in sorted(files, key=lambda file: (file.parent.name, file.name)):
        content = file.read_bytes()
        found.update(f"{file.name} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()
