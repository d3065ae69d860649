"""The parts of the key change with everything that changes samples, and with nothing else."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ds_sft.contracts import LayoutOptions
from ds_sft.data import fingerprint
from ds_sft.data.draft import Encoder
from ds_sft.data.fingerprint import parts_of
from ds_sft.errors import DataError, MissingInputError
from ds_sft.families import family_named

FAMILY = family_named("flan_t5")


@pytest.fixture
def encoder(tiny_checkpoint: Path) -> Encoder:
    """The tiny model's tokenizer."""
    return Encoder(FAMILY, FAMILY.load_tokenizer(tiny_checkpoint), LayoutOptions(512))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data file; nobody looks at what it means."""
    file = tmp_path / "d.json"
    file.write_text("[1]")
    return file


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_the_same_run_has_the_same_parts(data: Path, encoder: Encoder, tiny_checkpoint: Path) -> None:
    again = Encoder(FAMILY, FAMILY.load_tokenizer(tiny_checkpoint), LayoutOptions(512))
    assert parts_of(data, encoder=encoder, num_data=-1) == parts_of(data, encoder=again, num_data=-1)


def test_content_of_the_same_size_and_date_is_another_part(data: Path, encoder: Encoder) -> None:
    before, stat = parts_of(data, encoder=encoder, num_data=-1), data.stat()
    data.write_text("[2]")
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changed(before, parts_of(data, encoder=encoder, num_data=-1)) == {"data"}


def test_name_and_date_of_the_data_do_not_count(data: Path, encoder: Encoder, tmp_path: Path) -> None:
    copy = tmp_path / "other name.json"
    copy.write_text("[1]")
    os.utime(copy, (0, 0))
    assert parts_of(copy, encoder=encoder, num_data=-1) == parts_of(data, encoder=encoder, num_data=-1)


def test_the_name_of_the_model_folder_does_not_count(
    data: Path, encoder: Encoder, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    moved = Encoder(FAMILY, FAMILY.load_tokenizer(copy), LayoutOptions(512))
    assert parts_of(data, encoder=moved, num_data=-1) == parts_of(data, encoder=encoder, num_data=-1)


def test_an_added_token_is_another_part(data: Path, encoder: Encoder) -> None:
    before = parts_of(data, encoder=encoder, num_data=-1)
    encoder.tokenizer.add_tokens(["neologism"])
    assert changed(before, parts_of(data, encoder=encoder, num_data=-1)) == {"tokenizer"}


def test_a_chat_template_does_not_count(data: Path, encoder: Encoder) -> None:
    before = parts_of(data, encoder=encoder, num_data=-1)
    encoder.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    assert parts_of(data, encoder=encoder, num_data=-1) == before


def test_tokenising_does_not_change_the_tokenizers_part(data: Path, encoder: Encoder) -> None:
    before = parts_of(data, encoder=encoder, num_data=-1)
    encoder.family.encode_text(encoder.tokenizer, "some words", is_continued=False)
    encoder.tokenizer(["some words", "more"], padding="longest", truncation=True, max_length=8)
    encoder.tokenizer("some words")
    assert parts_of(data, encoder=encoder, num_data=-1) == before


@pytest.mark.parametrize(
    "options", [LayoutOptions(511), LayoutOptions(512, "split_example"), LayoutOptions(512, name="fastchat")], ids=str
)
def test_every_option_of_the_layout_is_another_part(data: Path, encoder: Encoder, options: LayoutOptions) -> None:
    before = parts_of(data, encoder=encoder, num_data=-1)
    assert changed(before, parts_of(data, encoder=replace(encoder, options=options), num_data=-1)) == {"layout"}


def test_the_number_of_records_is_another_part(data: Path, encoder: Encoder) -> None:
    before = parts_of(data, encoder=encoder, num_data=-1)
    assert changed(before, parts_of(data, encoder=encoder, num_data=3)) == {"num_data"}


def test_another_version_of_a_library_is_another_part(
    data: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = parts_of(data, encoder=encoder, num_data=-1)
    monkeypatch.setattr(fingerprint, "version", lambda name: "99" if name == "sentencepiece" else "1")
    assert changed(before, parts_of(data, encoder=encoder, num_data=-1)) == {"libraries"}


def lay_out_of(file: Path) -> Callable[..., object]:
    """Load a module from a file and give its `lay_out`."""
    spec = importlib.util.spec_from_file_location("a_family", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., object] = module.lay_out
    return found


def test_the_code_between_bytes_and_samples_is_a_part(
    data: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    house = Path(fingerprint.__file__).parents[1]
    copy = shutil.copytree(house, tmp_path / "ds_sft", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "__file__", str(copy / "data" / "fingerprint.py"))
    template = copy / "families" / "flan_t5" / "template.py"
    family = replace(FAMILY, lay_out=lay_out_of(template))  # type: ignore[arg-type]  # it is the same function
    copied = replace(encoder, family=family)
    rooms = {
        "data": ("forms", "read", "normalise", "draft", "encode", "samples"),
        "families/flan_t5": ("tokenizer", "words"),
    }
    files = [
        copy / "contracts.py",
        template,
        *(copy / room / f"{name}.py" for room, names in rooms.items() for name in names),
    ]
    before = parts_of(data, encoder=copied, num_data=-1)
    for file in files:
        content = file.read_text(encoding="utf-8")
        file.write_text(content + "\n", encoding="utf-8")
        assert changed(before, parts_of(data, encoder=copied, num_data=-1)) == {"code"}, file
        file.write_text(content, encoding="utf-8")


def test_a_data_file_that_is_not_there_is_told(tmp_path: Path, encoder: Encoder) -> None:
    with pytest.raises(MissingInputError, match="data_path: file must exist"):
        parts_of(tmp_path / "none.json", encoder=encoder, num_data=-1)


def test_a_folder_is_no_data_file(tmp_path: Path, encoder: Encoder) -> None:
    with pytest.raises(DataError, match="is a folder"):
        parts_of(tmp_path, encoder=encoder, num_data=-1)
