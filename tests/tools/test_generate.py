"""Answers come in the order of the questions, whatever is answered side by side, and a command goes on where it was."""

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ds_sft.errors import ConfigError, DsSftError, LaunchError, MissingInputError, ModelError
from ds_sft.tools import loaded_model
from ds_sft.tools.asking import Asking
from ds_sft.tools.generate import Request, generate

NUM = 11
SHORT = Asking(max_new_tokens=6)


def answered(model: Path, data: Path, output: Path, asking: Asking = SHORT, **more: Any) -> list[dict[str, Any]]:
    list(generate(Request(str(model), data, output, asking, **{"num_data": NUM, **more})))
    return [json.loads(line) for line in output.read_text(encoding="ascii").splitlines()]


@pytest.fixture(scope="module")
def done(tiny_yuan2: Path, conversations_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of answers."""
    output = tmp_path_factory.mktemp("done") / "answers.jsonl"
    answered(tiny_yuan2, conversations_file, output, batch_size=4)
    return output


def test_each_line_tells_question_answer_and_how_it_ended(done: Path, conversations_file: Path) -> None:
    rows = [json.loads(line) for line in done.read_text().splitlines()]
    records = json.loads(conversations_file.read_text())[:NUM]
    assert [(row["id"], row["question"], row["expected"]) for row in rows] == [
        (record["id"], *(turn["value"] for turn in record["conversations"][-2:])) for record in records
    ]
    assert [row["place"] for row in rows] == [f"{conversations_file}:record {n}" for n in range(1, NUM + 1)]
    # A model that has learnt nothing does not stop.
    assert {(row["num_tokens"], row["finish_reason"]) for row in rows} == {(6, "length")}
    assert any(row["prediction"] for row in rows)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("fixture", ["tiny_checkpoint", "tiny_yuan2"])
def test_the_answers_do_not_depend_on_the_batch(
    fixture: str, temperature: float, request: pytest.FixtureRequest, conversations_file: Path, tmp_path: Path
) -> None:
    model = request.getfixturevalue(fixture)
    asking = Asking(max_new_tokens=6, temperature=temperature, top_p=0.9, seed=3)
    first, *others = [
        answered(model, conversations_file, tmp_path / f"{size}.jsonl", asking, batch_size=size) for size in (1, 3, 16)
    ]
    assert others == [first, first]


def test_a_command_that_was_cut_off_goes_on_and_gives_the_same_bytes(
    done: Path, tiny_yuan2: Path, conversations_file: Path, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    lines = done.read_bytes().splitlines(keepends=True)
    output = tmp_path / done.name
    shutil.copy(done.with_name(f"{done.name}.settings.json"), tmp_path)
    output.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    answered(tiny_yuan2, conversations_file, output, batch_size=3)
    assert output.read_bytes() == done.read_bytes()
    assert "its last line is not whole: 40 bytes are cut off" in told.text
    assert "going on behind 5 lines" in told.text


def test_a_finished_file_is_left_alone_and_loads_no_model(
    done: Path, tiny_yuan2: Path, conversations_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(loaded_model, "read_weights")
    before = done.read_bytes()
    (line,) = generate(Request(str(tiny_yuan2), conversations_file, done, SHORT, num_data=NUM))
    assert line == f"{done}: already finished, nothing to do: {NUM} answers"
    assert done.read_bytes() == before


@pytest.mark.parametrize(
    ("asking", "told"),
    [
        (Asking(max_new_tokens=7), "max_new_tokens: must be 6 as in .*, but is 7; name another --output"),
        (Asking(max_new_tokens=6, temperature=0.5), "temperature: must be 0.0 as in .*, but is 0.5"),
        (Asking(max_new_tokens=6, dtype="bf16"), "dtype: must be 'fp32' as in .*, but is 'bf16'"),
    ],
)
def test_answers_of_other_settings_are_not_continued(
    asking: Asking, told: str, done: Path, tiny_yuan2: Path, conversations_file: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        answered(tiny_yuan2, conversations_file, done, asking)


def test_answers_of_another_model_or_other_data_are_not_continued(
    done: Path, tiny_checkpoint: Path, conversations_file: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.json"
    data.write_text(conversations_file.read_text() + "\n")
    with pytest.raises(ConfigError) as caught:
        answered(tiny_checkpoint, data, done)
    assert [line.split(":")[0] for line in caught.value.faults] == ["data", "model"]


def test_a_file_of_somebody_else_is_not_written_to(tiny_yuan2: Path, conversations_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"output: must be new, or lie beside notes\.jsonl\.settings\.json"):
        answered(tiny_yuan2, conversations_file, tmp_path / "notes.jsonl")
    assert (tmp_path / "notes.jsonl").read_text() == "mine\n"


def test_a_file_has_one_writer(done: Path, tiny_yuan2: Path, conversations_file: Path) -> None:
    with done.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LaunchError, match="must have one writer"):
            answered(tiny_yuan2, conversations_file, done)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"data_path": Path("none.json")}, MissingInputError, "data_path: file must exist, but none.json does not"),
        ({"model": "./none"}, MissingInputError, "model_name_or_path: folder must exist, but none does not"),
        ({"num_data": 0}, ConfigError, "num_data: must be -1"),
        ({"asking": Asking(device="gpu")}, ConfigError, "device: must be cpu, cuda or cuda:N, but is 'gpu'"),
        ({"asking": Asking(base="x")}, ConfigError, "model_name_or_path: goes with an adapter, but"),
        ({"asking": Asking(max_new_tokens=9, max_tokens=9)}, ConfigError, "max_new_tokens: must be below"),
    ],
)
def test_each_mistake_is_one_line(
    change: dict[str, Any],
    kind: type[DsSftError],
    told: str,
    tiny_yuan2: Path,
    conversations_file: Path,
    tmp_path: Path,
) -> None:
    asked = {"model": str(tiny_yuan2), "data_path": conversations_file, "output": tmp_path / "o", "asking": SHORT}
    with pytest.raises(kind) as caught:
        list(generate(Request(**{**asked, **change})))
    (line,) = caught.value.faults
    assert line.startswith(told)
    assert list(tmp_path.iterdir()) == []


def test_a_family_is_not_asked_in_a_format_that_it_refuses(tiny_checkpoint: Path, conversations_file: Path) -> None:
    with pytest.raises(ConfigError, match="dtype: flan_t5 must not be used in fp16: T5's feed-forward outputs"):
        answered(tiny_checkpoint, conversations_file, Path("unused"), Asking(dtype="fp16"))


@pytest.mark.parametrize(("given", "told"), [({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p")])
def test_chance_has_its_bounds(given: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=f"^{told}: must be"):
        Asking(**given)  # type: ignore[arg-type]  # floats only


def test_a_folder_whose_manifest_is_broken_is_told(tiny_yuan2: Path, conversations_file: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_yuan2, tmp_path / "model")
    (model / "MANIFEST.json").write_text("{")
    with pytest.raises(ModelError, match="must tell how it was trained, but"):
        answered(model, conversations_file, tmp_path / "o")


def test_length_and_layout_are_those_of_the_training(
    tiny_yuan2: Path, conversations_file: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_yuan2, tmp_path / "model")
    layout = '{"loss_mode": "efficient", "max_tokens": 300, "name": "fastchat"}'
    facts = {"format": 1, "step": 1, "world_size": 1, "files": {}, "facts": {"fingerprint": {"layout": layout}}}
    (model / "MANIFEST.json").write_text(json.dumps(facts))
    answered(model, conversations_file, tmp_path / "o", num_data=1)
    settings = json.loads((tmp_path / "o.settings.json").read_text())
    assert (settings["layout"], settings["model_max_length"]) == ("fastchat", 300)
