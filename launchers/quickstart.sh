#!/usr/bin/env bash
# From a fresh checkout to a fine-tuned, loadable model: bash launchers/quickstart.sh [FAMILY] [FLAGS FOR THE MAIN JOB]
#
# FAMILY is flan_t5 (the default) or yuan2. It makes .venv, makes a tiny checkpoint of that shape, fine-tunes it under
# DeepSpeed ZeRO-3 (on GPUs where there are any, else on two CPU ranks), exports it, loads the result in a new process
# with transformers' auto classes and asks it eight of its training questions. Then it teaches the result eight more
# answers by adapters, merges them and asks those. Everything is written below runs/quickstart; a second run installs
# nothing.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
family=flan_t5
case "${1:-}" in
    "" | -*) ;;
    *)
        family="$1"
        shift
        ;;
esac
here="$ds_sft_root/launchers/quickstart"
work="${QUICKSTART_DIR:-$ds_sft_root/runs/quickstart}"
conversations="$here/conversations.json"
tiny="$work/$family/tiny"
tuned="$work/$family/tuned"

ensure_venv
use_cpu_where_there_is_no_gpu
export PATH="$venv/bin:$PATH" HF_HUB_OFFLINE=1
started=$SECONDS

say "1/5 a tiny checkpoint: random weights, a tokenizer of its own"
"$python" "$here/make_checkpoint.py" "$family" "$conversations" "$tiny"

devices="$(count_devices)"
# A finished run would be left alone.
rm -rf "$tuned"
say "2/5 fine-tuning on $devices ranks under ZeRO-3"
(
    set -x
    deepspeed --num_gpus "$devices" --master_port "$(free_port)" "$ds_sft_root/ds_sft/train.py" \
        --deepspeed "$ds_sft_root/ds_configs/zero3.json" \
        --model_name_or_path "$tiny" \
        --data_path "$conversations" \
        --output_dir "$tuned" \
        --max_steps 250 \
        --tokens_per_batch "$((2400 / devices > 600 ? 2400 / devices : 600))" \
        --learning_rate 2.5e-3 \
        --warmup_steps 10 \
        --logging_steps 20 \
        --logging_first_step True \
        --save_strategy no \
        "$@"
)

say "3/5 loading the result with transformers and asking it eight training questions"
is_learnt=0
"$python" "$here/ask.py" "$tuned" "$conversations" --least 7 || is_learnt=$?

say "4/5 the loss curve"
"$python" "$here/plot_loss.py" "$tuned"

adapter="$work/$family/adapter"
merged="$work/$family/merged"
rm -rf "$adapter" "$merged"
say "5/5 eight new answers by adapters on the frozen model, merged and asked"
(
    set -x
    deepspeed --num_gpus 1 --master_port "$(free_port)" "$ds_sft_root/ds_sft/train.py" \
        --deepspeed "$ds_sft_root/ds_configs/zero2.json" \
        --model_name_or_path "$tuned" \
        --data_path "$here/more_conversations.json" \
        --output_dir "$adapter" \
        --lora_r 16 \
        --lora_alpha 32 \
        --lora_dropout 0 \
        --lora_target_modules all-linear \
        --max_steps 60 \
        --per_device_train_batch_size 8 \
        --learning_rate 1e-2 \
        --logging_steps 20 \
        --save_strategy no \
        "$@"
    ds-sft merge "$adapter" --output_dir "$merged"
)
"$python" "$here/ask.py" "$merged" "$here/more_conversations.json" --least 7 || is_learnt=$?

say "done in $((SECONDS - started)) s without installation; what to try next:"
cat << NEXT
  the model            $tuned
  talk with it         $venv/bin/ds-sft chat $tuned
  its loss curve       $tuned/loss.png
  in TensorBoard       $venv/bin/tensorboard --logdir $tuned/runs
  your own data        $venv/bin/deepspeed $ds_sft_root/ds_sft/train.py --deepspeed $ds_sft_root/ds_configs/zero3.json \\
                         --model_name_or_path CHECKPOINT --data_path YOUR.json --output_dir OUT --bf16 True
  the same run again   $venv/bin/deepspeed $ds_sft_root/ds_sft/train.py $tuned/ds_sft.resolved.yaml --output_dir OUT
  all settings         $venv/bin/python $ds_sft_root/ds_sft/train.py --help
  the tests            bash $ds_sft_root/tests/run.sh
NEXT
exit "$is_learnt"
