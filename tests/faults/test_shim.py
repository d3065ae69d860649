"""Crashfs counts what changes a folder, and makes exactly the operation fail that was asked for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.shim import Mode, NotPreloadedError, build, count, read_log

PROGRAM = """
import ctypes, os, shutil, sys, threading
from pathlib import Path
from tests.faults.shim import Mode, arm, count, disarm
place = Path(sys.argv[1])
out = place / "out"
os.chdir(place)
(out / "sub").mkdir(parents=True)
(out / "old").write_bytes(b"12345678")
(place / "source").write_bytes(b"abcdefgh")
libc = ctypes.CDLL(None)
libc.fopen64.restype = ctypes.c_void_p

def tried(action, *arguments):
    try:
        return action(*arguments)
    except OSError as error:
        return -error.errno

new = os.open(out / "new", os.O_WRONLY | os.O_CREAT)
source = os.open("source", os.O_RDONLY)
"""


def victim(crashfs: Path, place: Path, lines: str, at: int = 0, mode: Mode = Mode.KILL) -> tuple[int, list[str]]:
    """Run some lines under a fault; give the exit code and what was printed."""
    arming = f'arm(out, {at}, Mode.{mode.name}, log=place / "log")\n'
    command = [sys.executable, "-S", "-c", PROGRAM + arming + lines, str(place)]
    environment = {**os.environ, "LD_PRELOAD": str(crashfs), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def logged(place: Path) -> list[str]:
    """What was logged: names and paths."""
    shown = []
    for operation in read_log(place / "log"):
        paths = [operation.path, operation.other] if operation.other else [operation.path]
        words = [os.path.relpath(path, place / "out") if path.startswith("/") else path for path in paths]
        shown.append(" ".join([operation.name, *words]))
    return shown


KINDS = {
    'os.open("out/a", os.O_WRONLY | os.O_CREAT | os.O_EXCL)': ["create a"],
    'os.open("out/old", os.O_WRONLY)': ["open old"],
    'os.open("out/old", os.O_RDWR | os.O_TRUNC)': ["empty old"],
    'os.open("a", os.O_WRONLY | os.O_CREAT, dir_fd=os.open("out/sub", os.O_RDONLY))': ["create sub/a"],
    'libc.creat(b"out/a", 0o600)': ["create a"],
    'libc.fclose(ctypes.c_void_p(libc.fopen64(b"out/a", b"w")))': ["create a", "close a"],
    'Path("out/sub/a").write_bytes(b"a")': ["create sub/a", "write sub/a", "close sub/a"],
    'Path("out/../out/sub/./a").touch()': ["create sub/a", "close sub/a"],
    'os.rename("out/old", "out/sub/b")': ["rename old sub/b"],
    'os.replace("old", out / "b", src_dir_fd=os.open(out, os.O_RDONLY))': ["rename old b"],
    'os.rename("source", "out/b")': ["rename ../source b"],
    'os.rename("out/old", "b")': ["rename old ../b"],
    'os.unlink("out/old")': ["unlink old"],
    'libc.remove(b"out/old")': ["unlink old"],
    'libc.remove(b"out/sub")': ["rmdir sub"],
    'os.mkdir("out/d")': ["mkdir d"],
    'os.rmdir("out/sub")': ["rmdir sub"],
    'os.link("out/old", "out/b")': ["link old b"],
    'os.symlink("old", "out/b")': ["symlink b old"],
    'os.truncate("out/old", 3)': ["truncate old"],
    'os.write(new, b"a")': ["write new"],
    'os.write(os.dup(new), b"a")': ["write new"],
    'os.pwrite(new, b"a", 5)': ["write new"],
    'os.writev(new, [b"a", b"b"])': ["write new"],
    'os.pwritev(new, [b"a", b"b"], 5)': ["write new"],
    "os.sendfile(new, source, 0, 8)": ["write new"],
    "os.copy_file_range(source, new, 8)": ["write new"],
    "os.ftruncate(new, 5)": ["truncate new"],
    "os.posix_fallocate(new, 0, 5)": ["fallocate new"],
    "os.fsync(new)": ["fsync new"],
    "os.fdatasync(new)": ["fsync new"],
    "os.fsync(os.open(out, os.O_RDONLY))": ["fsync ."],
    "os.close(new)": ["close new"],
    'os.chdir("out/sub"); Path("a").touch()': ["create sub/a", "close sub/a"],
    'os.symlink("out", "way"); Path("way/a").touch()': ["create a", "close a"],
    'shutil.copytree("out", "out/copy", ignore=lambda *_: ["sub", "new"], copy_function=shutil.copyfile)': [
        *("mkdir copy", "create copy/old", "write copy/old", "write copy/old", "close copy/old"),
    ],
    "shutil.rmtree(out)": ["unlink new", "unlink old", "rmdir sub", "rmdir ."],
    'os.rename("out/sub", "out/b"); os.mkdir("out/b/c")': ["rename sub b", "mkdir b/c"],
    'os.read(os.open("out/old", os.O_RDONLY), 8); os.stat("out/old"); os.listdir("out")': [],
    'shutil.copyfile("source", "copy"); os.mkdir("outer"); os.rmdir("outer"); os.unlink("copy")': [],
}


@pytest.mark.parametrize("lines", KINDS)
def test_every_operation_that_changes_the_folder_is_counted(lines: str, crashfs: Path, tmp_path: Path) -> None:
    code, said = victim(crashfs, tmp_path, f"{lines}\nprint(count())")
    expected = KINDS[lines]
    assert (code, said) == (0, [str(len(expected))])
    found = logged(tmp_path) if expected else []
    assert sorted(found) == sorted(expected) if "rmtree" in lines else found == expected


THREE = """
Path("aside").write_bytes(b"a")
for name in "abc":
    os.mkdir(out / name)
print(count())
"""


@pytest.mark.parametrize(("at", "left"), [(1, ""), (2, "a"), (3, "ab"), (4, "abc")])
def test_a_kill_comes_before_the_operation(at: int, left: str, crashfs: Path, tmp_path: Path) -> None:
    code, _ = victim(crashfs, tmp_path, THREE, at)
    assert code == (0 if at == 4 else -signal.SIGKILL)
    assert "".join(name for name in "abc" if (tmp_path / "out" / name).is_dir()) == left
    assert (tmp_path / "aside").read_bytes() == b"a"


EVERYTHING = """
results = [
    tried(os.mkdir, "out/first"),
    tried(os.open, "out/a", os.O_WRONLY | os.O_CREAT),
    tried(os.open, "out/old", os.O_WRONLY),
    tried(os.write, new, b"1234"),
    tried(os.pwrite, new, b"1234", 0),
    tried(os.writev, new, [b"1234"]),
    tried(os.sendfile, new, source, 0, 8),
    tried(os.mkdir, "out/d"),
    tried(os.mkdir, "out/sub"),
    tried(os.rename, "out/old", "out/b"),
    tried(os.truncate, "out/old", 4),
    tried(os.mkdir, "outside"),
    tried(os.fsync, new),
    tried(os.unlink, "out/old"),
    tried(os.rmdir, "out/sub"),
    tried(os.close, new),
]
print(*(value if value is None or value < 0 else "" for value in results), sep=",")
"""


@pytest.mark.parametrize(("mode", "error"), [(Mode.ENOSPC, -28), (Mode.EDQUOT, -122)])
def test_a_full_disk_stays_full_but_deleting_works(mode: Mode, error: int, crashfs: Path, tmp_path: Path) -> None:
    code, said = victim(crashfs, tmp_path, EVERYTHING, 2, mode)
    results = ["None", error, "", error, error, error, error, error, -17, error, *["None"] * 6]
    assert (code, said) == (0, [",".join(map(str, results))])


def test_a_folder_that_is_read_only_opens_nothing_for_writing(crashfs: Path, tmp_path: Path) -> None:
    code, said = victim(crashfs, tmp_path, EVERYTHING, 2, Mode.EROFS)
    results = ["None", *[-30] * 7, -17, -30, -30, *["None"] * 5]
    assert (code, said) == (0, [",".join(map(str, results))])


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_an_input_output_error_happens_once(at: int, crashfs: Path, tmp_path: Path) -> None:
    lines = """
fifth = os.dup(new)
actions = [(os.mkdir, "out/d"), (os.write, new, b"a"), (os.fsync, new), (os.unlink, "out/old"), (os.close, fifth)]
print(*(tried(*action) for action in actions), count())
try:
    os.fstat(fifth)
except OSError:
    print("closed")
"""
    code, said = victim(crashfs, tmp_path, lines, at, Mode.EIO)
    results = ["None", "1", "None", "None", "None", "5"]
    results[at - 1] = "-5"
    assert (code, said) == (0, [" ".join(results), "closed"])
    assert (tmp_path / "out" / "old").exists() is (at == 4)


@pytest.mark.parametrize(
    ("write", "written"),
    [
        ('os.write(new, b"1234567")', 3),
        ('os.pwrite(new, b"1234567", 0)', 3),
        ('os.writev(new, [b"12345678"])', 4),
        ('os.writev(new, [b"12", b"34", b"56", b"78"])', 4),
        ("os.sendfile(new, source, 0, 8)", 4),
    ],
)
def test_a_short_write_happens_once_and_is_the_first_write_from_there_on(
    write: str, written: int, crashfs: Path, tmp_path: Path
) -> None:
    code, said = victim(crashfs, tmp_path, f'os.mkdir("out/d")\nprint({write}, os.write(new, b"ab"))', 1, Mode.SHORT)
    assert (code, said) == (0, [f"{written} 2"])


def test_a_file_object_finishes_a_short_write_by_itself(crashfs: Path, tmp_path: Path) -> None:
    code, _ = victim(crashfs, tmp_path, 'Path("out/a").write_bytes(b"12345678")', 2, Mode.SHORT)
    assert (code, (tmp_path / "out" / "a").read_bytes()) == (0, b"12345678")
    assert logged(tmp_path) == ["create a", "write a", "write a", "close a"]


def test_the_log_tells_places_sizes_and_failures(crashfs: Path, tmp_path: Path) -> None:
    lines = """
os.write(new, b"1234"); os.write(new, b"56"); os.pwrite(new, b"7", 30); os.sendfile(new, source, 0, 8)
tried(os.rmdir, "out/none"); os.ftruncate(new, 3)
"""
    victim(crashfs, tmp_path, lines)
    found = [(step.name, step.offset, step.size, step.result) for step in read_log(tmp_path / "log")]
    writes = [("write", 0, 4, 4), ("write", 4, 2, 2), ("write", 30, 1, 1), ("write", 6, 8, 8)]
    assert found == [*writes, ("rmdir", 0, 0, -2), ("truncate", 0, 3, 0)]


def test_threads_together_are_counted_exactly(crashfs: Path, tmp_path: Path) -> None:
    lines = """
def work():
    for _ in range(200):
        os.write(new, b"a")
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(count())
"""
    assert victim(crashfs, tmp_path, lines) == (0, ["800"])


def test_a_forked_child_goes_on_counting_by_itself(crashfs: Path, tmp_path: Path) -> None:
    lines = """
os.mkdir("out/1")
child = os.fork()
os.mkdir(f"out/2{bool(child)}")
if not child:
    os.mkdir("out/never")
    os._exit(0)
print(os.WTERMSIG(os.waitpid(child, 0)[1]), count())
"""
    assert victim(crashfs, tmp_path, lines, 3) == (0, ["9 2"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1", "2False", "2True", "new", "old", "sub"]


def test_disarmed_it_neither_counts_nor_fails(crashfs: Path, tmp_path: Path) -> None:
    lines = 'os.mkdir("out/a"); disarm(); os.mkdir("out/b"); print(count()); arm(out, 1, Mode.EIO); print(count())'
    assert victim(crashfs, tmp_path, lines, 2, Mode.EIO) == (0, ["1", "0"])


def test_a_process_without_it_is_told_so() -> None:
    with pytest.raises(NotPreloadedError, match="LD_PRELOAD"):
        count()


def test_without_a_compiler_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    built = build(tmp_path)
    assert isinstance(built, str)
    assert built.startswith(("no C compiler: ", "crashfs needs "))
