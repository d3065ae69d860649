"""What is seen on a host: content told apart, folders tried, and nothing left behind."""

from pathlib import Path

from ds_sft.hosts.looking import digest, nearest, trial


def test_a_file_is_told_apart_by_its_content(tmp_path: Path) -> None:
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    assert digest(tmp_path / "none") is None


def test_a_large_file_is_told_apart_by_size_and_ends(tmp_path: Path) -> None:
    size = (1 << 24) + 1
    found = []
    for at in (None, 0, size - 1):
        with (tmp_path / "big").open("wb") as stream:
            stream.truncate(size)
            if at is not None:
                stream.seek(at)
                stream.write(b"x")
        found.append(digest(tmp_path / "big"))
    assert len(set(found)) == 3


def test_a_folder_is_told_apart_by_code_and_by_names_and_sizes_of_the_rest(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    code, weights, compiled = (tmp_path / name for name in ("a.py", "w.bin", "__pycache__/a.pyc"))

    def written(text: str, data: str, old: str) -> str | None:
        for file, content in ((code, text), (weights, data), (compiled, old)):
            file.write_text(content)
        return digest(tmp_path)

    first = written("x", "abc", "1")
    assert written("x", "xyz", "2") == first, "weights of the same size, and what Python compiled, do not count"
    assert written("y", "abc", "1") != first
    assert written("x", "abcd", "1") != first


def test_a_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    told = trial(tmp_path)
    assert (told["fault"], told["has_locks"]) == ("", True)
    assert told["bytes_per_second"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_refuses_is_told() -> None:
    assert trial(Path("/proc"))["fault"]


def test_the_nearest_folder_exists(tmp_path: Path) -> None:
    assert nearest(tmp_path / "a" / "b") == tmp_path
