"""Where this package keeps what it can make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Give the folder of tokenised samples and compiled extensions.

    Returns:
        What DS_SFT_CACHE names, else `ds_sft` in the user's cache; it need not exist.
    """
    named = os.environ.get("DS_SFT_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ds_sft"
