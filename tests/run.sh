#!/usr/bin/env bash
# Checks and tests everything, with all set-up of its own: bash tests/run.sh [FLAGS FOR PYTEST]
#
# Default: format, lint, types, import rules, docstrings, and every test that is not marked slow, gpu or multinode.
# `bash tests/run.sh -m slow` runs the slow tier instead of the default one, `-m "multinode and not slow"` two hosts made of
# namespaces; without root, openssh-server or nftables those tests say what is missing and are skipped.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/../launchers/env.sh"
ensure_venv dev
cd "$ds_sft_root"
export PATH="$venv/bin:$PATH"
# One thread a process: two ranks of a test share the cores, and forked processes must not inherit a pool of threads.
export OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu HF_HUB_OFFLINE=1

say "format";      ruff format --check .
say "lint";        ruff check .
say "types";       mypy
say "imports";     lint-imports
say "docstrings";  pydoclint --quiet --style=google --arg-type-hints-in-docstring=False --check-return-types=False \
                       --check-yield-types=False --check-class-attributes=False --skip-checking-raises=True ds_sft launchers
say "tests"
if [ "$#" -eq 0 ]; then
    set -- -m "not slow and not gpu and not multinode"
fi
pytest "$@"
