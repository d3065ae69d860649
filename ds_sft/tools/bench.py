"""`ds-sft bench`: runs the training benchmark where its files are, which is in the repository only."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ds_sft
from ds_sft.errors import MissingInputError


def bench(arguments: Sequence[str], *, root: Path | None = None) -> int:
    """Run `python -m benchmarks.run`.

    Args:
        arguments: Its flags.
        root: The repository; by default the folder that this package lies in.

    Returns:
        Its exit code.

    Raises:
        MissingInputError: When the package was installed without the repository.
    """
    root = root or Path(ds_sft.__file__).parent.parent
    program = root / "benchmarks" / "run.py"
    if not program.is_file():
        raise MissingInputError(
            f"{program}: must be there, but is not: the package comes without the benchmark; run it in a clone of the "
            "repository"
        )
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    # Not from the folder that the user is in: another `benchmarks` may lie there.
    done = subprocess.run([sys.executable, "-P", "-m", "benchmarks.run", *arguments], env=environment, check=False)
    return done.returncode
