"""Makes the tiny checkpoint that the quick start trains: `make_checkpoint.py FAMILY CONVERSATIONS OUTPUT_DIR`."""

import sys
from pathlib import Path

from ds_sft.data.read import read_conversations, texts_of
from ds_sft.families import family_named


def main() -> None:
    """Train a tokenizer on the conversations and write a small random model beside it."""
    family, data_path, output_dir = family_named(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    family.write_tiny_checkpoint(output_dir, texts_of(read_conversations(data_path)))
    print(f"wrote a tiny {family.name} checkpoint to {output_dir}")


if __name__ == "__main__":
    main()
