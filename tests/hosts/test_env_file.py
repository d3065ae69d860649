"""`.deepspeed_env`: what may travel to other hosts on a command line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_sft.hosts.env_file import env_file_faults, env_files, variables_of

VALUE = "x7q9"


def written(folder: Path, text: str, mode: int = 0o644) -> Path:
    path = folder / ".deepspeed_env"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def test_plain_variables_may_travel(tmp_path: Path) -> None:
    path = written(tmp_path, "NCCL_DEBUG=INFO\nHF_HOME=/shared/hf\nTOKENIZERS_PARALLELISM=false\nA=b=c\nEMPTY=\n")
    assert env_file_faults(path) == []
    assert variables_of(path) == {
        "NCCL_DEBUG": "INFO", "HF_HOME": "/shared/hf", "TOKENIZERS_PARALLELISM": "false", "A": "b=c", "EMPTY": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "aws_secret_access", "DB_PASSWORD", "APIKEY", "GOOGLE_CREDENTIALS", "PASSWD"]
)
def test_a_name_like_a_secret_is_refused_and_its_value_never_shown(name: str, tmp_path: Path) -> None:
    (fault,) = env_file_faults(written(tmp_path, f"A=1\n{name}={VALUE}\n", 0o600))
    assert f".deepspeed_env:2: must hold no secret, but {name} looks like one" in fault
    assert VALUE not in fault


@pytest.mark.parametrize("value", ["http://me:x7q9@proxy:1", "hf_" + "a" * 30, "sk-" + "b" * 30])
def test_a_value_like_a_secret_is_refused_and_never_shown(value: str, tmp_path: Path) -> None:
    (fault,) = env_file_faults(written(tmp_path, f"PROXY={value}\n"))
    assert "must hold no secret" in fault
    assert value not in fault


@pytest.mark.parametrize("value", ["$(id)", "`id`", "a;id", "a b", "a|b", "'a'", '"a"', "a\\", "a&", "*", "a\x0b", "~"])
def test_a_value_that_a_shell_would_read_is_refused(value: str, tmp_path: Path) -> None:
    (fault,) = env_file_faults(written(tmp_path, f"A={value}\n"))
    assert "a value must need no quoting, but that of A does" in fault


@pytest.mark.parametrize("line", ["", "# comment", "export A=1", "1A=2", "A", "=1"])
def test_a_line_on_which_deepspeed_would_fail_is_refused(line: str, tmp_path: Path) -> None:
    (fault,) = env_file_faults(written(tmp_path, f"A=1\n{line}\nB=2\n"))
    assert ":2: a line must be NAME=value" in fault


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_refused(mode: int, tmp_path: Path) -> None:
    path = written(tmp_path, "A=1\n", mode)
    assert env_file_faults(path) == [f"{path}: only you may write it, but its mode is {mode:04o}; chmod go-w {path}"]


def test_a_folder_or_a_dangling_link_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "none")
    assert "must be a plain file" in env_file_faults(tmp_path)[0]
    assert "must be readable" in env_file_faults(tmp_path / "link")[0]


def test_both_places_of_deepspeed_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    assert env_files() == []
    own, other = written(home, "A=1\n"), written(here, "A=2\n")
    assert env_files() == [own, other]
    monkeypatch.setenv("DS_ENV_FILE", "other")
    assert env_files() == []


@given(st.binary(max_size=200))
def test_no_file_crashes_the_judge(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "env"
    path.write_bytes(raw)
    faults = env_file_faults(path)
    if not faults:
        variables_of(path)
