#!/usr/bin/env bash
# Several hosts: bash launchers/multi_node.sh [--dry-run] [--launcher NAME] HOSTFILE [RECIPE] [FLAGS FOR THE MAIN JOB]
#
# NAME is one of
#   pdsh      (the default) run it once, on the first host; ssh to all hosts must work without a password
#   openmpi   the same through mpirun; needs mpi4py
#   no_ssh    run it on every host; deepspeed starts the ranks of that host
#   torchrun  run it on every host; torchrun's c10d store brings the hosts together
# `ds-sft launch` does more: it looks at all hosts first, watches the job and starts it again.
#
# MASTER_PORT names the port of the first host (29500). Variables that all hosts need stand in .deepspeed_env.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
if [ "${1:-}" = "--dry-run" ]; then
    is_dry_run=1
    shift
fi
launcher=pdsh
if [ "${1:-}" = "--launcher" ]; then
    launcher="${2:-}"
    shift 2
fi
if [ "$#" -lt 2 ]; then
    echo "error: command line: must be HOSTFILE [RECIPE] [FLAGS], but is '$*'; see $ds_sft_root/launchers/README.md" >&2
    exit 2
fi
hostfile="$1"
shift
if [ "$is_dry_run" = 0 ]; then
    ensure_venv
fi
read_hosts "$hostfile"
port="${MASTER_PORT:-29500}"
train="$ds_sft_root/ds_sft/train.py"
deepspeed=("$venv/bin/deepspeed" --hostfile "$hostfile" --master_addr "$master_addr" --master_port "$port")

refuse_strangers() {
    if [ "$own_place" -lt 0 ]; then
        echo "error: hostfile: must name this host ($(hostname)) for --launcher $launcher, but $hostfile does not; add it" >&2
        exit 64
    fi
}

case "$launcher" in
    pdsh)
        refuse_shell_words "$ds_sft_root" "$PWD" "$hostfile" "$port" "$@"
        # Without it a host that has gone is noticed by nobody.
        export PDSH_SSH_ARGS_APPEND="-o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=4 ${PDSH_SSH_ARGS_APPEND:-}"
        run_or_print "${deepspeed[@]}" --launcher pdsh "$train" "$@"
        ;;
    openmpi)
        run_or_print "${deepspeed[@]}" --launcher openmpi --launcher_args "${MPI_ARGS:-}" "$train" "$@"
        ;;
    no_ssh)
        refuse_strangers
        run_or_print "${deepspeed[@]}" --no_ssh --node_rank "$own_place" "$train" "$@"
        ;;
    torchrun)
        refuse_strangers
        # A host that is replaced after a fault finds the others only without the shared store.
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
        run_or_print "$venv/bin/torchrun" \
            --nnodes "$num_hosts" \
            --nproc_per_node "$own_slots" \
            --node_rank "$own_place" \
            --rdzv_backend c10d \
            --rdzv_endpoint "$master_addr:$port" \
            --rdzv_id "${RDZV_ID:-ds_sft}" \
            --local_addr "$own_addr" \
            "$train" "$@"
        ;;
    *)
        echo "error: --launcher: must be pdsh, openmpi, no_ssh or torchrun, but is '$launcher'; choose one" >&2
        exit 2
        ;;
esac
