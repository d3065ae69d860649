#!/usr/bin/env bash
# Adapters on one GPU: bash launchers/single_gpu_lora.sh [--dry-run] MODEL DATA OUTPUT_DIR [FLAGS FOR THE MAIN JOB]
#
# MODEL is a checkpoint folder or a name on the hub. The frozen model is held in bf16; with `--q_lora True` behind the
# three words it is held in 4 bits. Flags that are given win over those written here.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if [ "${1:-}" = "--dry-run" ]; then
    is_dry_run=1
    shift
fi
if [ "$#" -lt 3 ] || [[ "$1" == -* || "$2" == -* || "$3" == -* ]]; then
    echo "error: command line: must be MODEL DATA OUTPUT_DIR [FLAGS], but is '$*'; see $ds_sft_root/launchers/README.md" >&2
    exit 2
fi
model="$1" data="$2" output_dir="$3"
shift 3

if has_gpu; then
    # One process sees one GPU, the first unless the user chose another.
    chosen="${CUDA_VISIBLE_DEVICES:-0}"
    export CUDA_VISIBLE_DEVICES="${chosen%%,*}"
    if [ "$chosen" != "$CUDA_VISIBLE_DEVICES" ]; then
        echo "CUDA_VISIBLE_DEVICES: $chosen -> $CUDA_VISIBLE_DEVICES, because this runs on one GPU" >&2
    fi
    set -- --bf16 True "$@"
fi
if [ "$is_dry_run" = 0 ]; then
    extra=""
    [[ " $* " =~ \ --q[_-]lora[\ =] && ! " $* " =~ \ --q[_-]lora[\ =][Ff]alse ]] && extra=qlora
    ensure_venv "$extra"
    use_cpu_where_there_is_no_gpu
fi
run_or_print "$python" "$ds_sft_root/ds_sft/train.py" \
    --model_name_or_path "$model" \
    --data_path "$data" \
    --output_dir "$output_dir" \
    --lora_r 16 \
    --lora_alpha 32 \
    --learning_rate 2e-4 \
    --lr_scheduler_type cosine \
    --warmup_steps 0.03 \
    --gradient_checkpointing True \
    "$@"
