# Sourced by the other scripts: finds the repository and keeps its virtual environment in step with setup.cfg.
#
#   ds_sft_root       the repository
#   ensure_venv       makes .venv and installs ds_sft where needed; `ensure_venv dev` adds the tools of the tests
#   free_port         prints a port that nobody listens on
#   has_gpu           ends with 0 where there is a GPU
#   count_devices     prints the number of GPUs; 2 CPU ranks where there is none
#   run_or_print      runs a command, or prints it after --dry-run
#   read_hosts        judges a hostfile; sets master_addr, own_addr, own_place, own_slots, num_hosts
#   refuse_shell_words  ends with 64 when a word would not survive a shell without quotes

ds_sft_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# A virtual environment of the user's own, which several hosts may share, is used as it is.
venv="${DS_SFT_VENV:-$ds_sft_root/.venv}"
python="$venv/bin/python"

say() { printf '\n== %s\n' "$*"; }

ensure_venv() {
    local extra="${1:-}" wanted stamp
    if [ -n "${DS_SFT_VENV:-}" ]; then
        return
    fi
    wanted="$(cat "$ds_sft_root/setup.cfg" "$ds_sft_root/constraints.txt" | sha256sum | cut -d' ' -f1)"
    stamp="$venv/.installed${extra:+-$extra}"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        say "environment $venv is up to date"
        return
    fi
    if [ ! -x "$python" ]; then
        local base="${PYTHON:-python3}"
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "error: python: must be 3.11 or newer, but $("$base" --version 2>&1); set PYTHON=/path/to/python3.11" >&2
            exit 64
        }
        say "making $venv"
        "$base" -m venv "$venv"
    fi
    say "installing ds_sft${extra:+[$extra]} into $venv (a few minutes the first time; about 1.6 GB with a CPU build of torch)"
    "$python" -m pip install --quiet --disable-pip-version-check \
        -e "$ds_sft_root${extra:+[$extra]}" -c "$ds_sft_root/constraints.txt"
    printf '%s' "$wanted" > "$venv/.installed"
    printf '%s' "$wanted" > "$stamp"
}

free_port() {
    "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

count_devices() {
    local gpus=0
    if command -v nvidia-smi > /dev/null 2>&1; then
        gpus="$(nvidia-smi --list-gpus 2> /dev/null | wc -l)"
    fi
    if [ "$gpus" -gt 0 ]; then
        echo "$gpus"
    else
        echo 2
    fi
}

has_gpu() {
    command -v nvidia-smi > /dev/null 2>&1 && nvidia-smi --list-gpus > /dev/null 2>&1
}

use_cpu_where_there_is_no_gpu() {
    if ! has_gpu; then
        export DS_ACCELERATOR=cpu
        # Two ranks share the cores; more threads than cores only get in each other's way.
        local cores
        cores="$(nproc 2> /dev/null || echo 2)"
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(((cores + 1) / 2))}"
    fi
}

# Every launcher takes --dry-run as its first word.
is_dry_run=0

run_or_print() {
    if [ "$is_dry_run" = 1 ]; then
        printf '%q ' "$@" && echo
    else
        exec "$@"
    fi
}

read_hosts() {
    local any_python="$python" found
    if [ ! -x "$any_python" ]; then
        any_python="${PYTHON:-python3}"
    fi
    found="$(PYTHONPATH="$ds_sft_root" "$any_python" -m ds_sft.hosts "$1")" || exit $?
    read -r master_addr own_addr own_place own_slots num_hosts <<< "$found"
}

refuse_shell_words() {
    local word
    for word in "$@"; do
        if ! [[ "$word" =~ ^[A-Za-z0-9_@%+=:,./\ -]+$ ]]; then
            printf 'error: command line: pdsh hands every word to a shell on every host, but %q is more than plain text; write it into a recipe\n' "$word" >&2
            exit 64
        fi
    done
}
