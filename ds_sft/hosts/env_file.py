"""Judges `.deepspeed_env`: DeepSpeed puts its lines into a command line on every host, where `ps` shows them to all."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

NAME = ".deepspeed_env"
_MOST_BYTES = 1 << 16
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# DeepSpeed does not quote: anything else would be read by the shell of every host.
_VALUE = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")
_SECRET_NAME = re.compile(r"TOKEN(?!IZ)|KEY|PASSW|SECRET|CREDENTIAL", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/@]+:[^/@]+@|\bhf_[A-Za-z0-9]{20}|\bsk-[A-Za-z0-9_-]{20}")


def env_files() -> list[Path]:
    """Name the files that DeepSpeed reads.

    Returns:
        Those that exist: in the home folder and in the current one, which wins.
    """
    name = os.environ.get("DS_ENV_FILE") or NAME
    found = [folder / name for folder in (Path.home(), Path.cwd())]
    return [path for path in dict.fromkeys(found) if os.path.lexists(path)]


def env_file_faults(path: Path) -> list[str]:
    """Judge one file.

    Args:
        path: Of `NAME=value` lines.

    Returns:
        One line for each fault; none shows a value. The list is empty for a file that may be used.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MOST_BYTES:
            return [f"{path}: must be a plain file of at most {_MOST_BYTES} bytes, but is not; write a new one"]
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        return [f"{path}: must be readable, but: {error.strerror}; check its mode"]
    return [*_owner_faults(path, facts), *_line_faults(path, text)]


def variables_of(path: Path) -> dict[str, str]:
    """Read a file without faults.

    Args:
        path: Of `NAME=value` lines.

    Returns:
        Name -> value.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def is_secret(name: str, value: str) -> bool:
    """Tell whether a variable looks like a secret.

    Args:
        name: Of the variable.
        value: Of the variable.

    Returns:
        Whether name or value do.
    """
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.search(value))


def _owner_faults(path: Path, facts: os.stat_result) -> Iterator[str]:
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(facts.st_mode)
        yield f"{path}: only you may write it, but its mode is {mode:04o}; chmod go-w {path}"
    if facts.st_uid not in (0, os.geteuid()):
        yield f"{path}: must be yours, but belongs to user {facts.st_uid}; write a new one"


def _line_faults(path: Path, text: str) -> Iterator[str]:
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, start=1):
        name, equals, value = line.partition("=")
        where = f"{path}:{number}"
        if not equals or not _VARIABLE.fullmatch(name):
            yield f"{where}: a line must be NAME=value, but is not (no comments, no blank lines); mend it"
        elif is_secret(name, value):
            yield (
                f"{where}: must hold no secret, but {name} looks like one, and `ps` would show it on every host; put "
                "it into a file that only you can read on each host"
            )
        elif not _VALUE.fullmatch(value):
            yield f"{where}: a value must need no quoting, but that of {name} does; a shell on every host reads it"
