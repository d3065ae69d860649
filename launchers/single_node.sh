#!/usr/bin/env bash
# All GPUs of this host: bash launchers/single_node.sh [--dry-run] [RECIPE] [FLAGS FOR THE MAIN JOB]
#
# The variable NUM_GPUS says how many; without it all are used (2 CPU ranks where there is none), and MASTER_PORT which
# port; without it a free one is found. Behind CUDA_VISIBLE_DEVICES, NUM_GPUS counts from its first one.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if [ "${1:-}" = "--dry-run" ]; then
    is_dry_run=1
    shift
fi
if [ "$#" -lt 1 ]; then
    echo "error: command line: must be [RECIPE] [FLAGS], but is empty; see $ds_sft_root/launchers/README.md" >&2
    exit 2
fi
if [ "$is_dry_run" = 0 ]; then
    ensure_venv
    use_cpu_where_there_is_no_gpu
    MASTER_PORT="${MASTER_PORT:-$(free_port)}"
fi
run_or_print "$venv/bin/deepspeed" \
    --num_gpus "${NUM_GPUS:-$(count_devices)}" \
    --master_port "${MASTER_PORT:-29500}" \
    "$ds_sft_root/ds_sft/train.py" \
    "$@"
