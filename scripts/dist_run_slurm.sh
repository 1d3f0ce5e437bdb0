#!/usr/bin/env bash
# Trains with GPUS processes (default 8) on as many nodes of a SLURM cluster as they need.
# Usage: scripts/dist_run_slurm.sh PARTITION JOB_NAME SCRIPT CFG MODEL_DIR [GPUS]
# Environment: GPUS_PER_NODE (8), CPUS_PER_TASK (5, per process), SRUN_ARGS for the job ("--time=8:00:00";
# "--gres=none" trains on CPUs), PY_ARGS for SCRIPT.
source "$(dirname "${BASH_SOURCE[0]}")/_slurm.sh"
[[ $# -eq 5 || $# -eq 6 ]] || die "usage: $0 PARTITION JOB_NAME SCRIPT CFG MODEL_DIR [GPUS]" 2
gpus=${6:-8} per_node=${GPUS_PER_NODE:-8} cpus=${CPUS_PER_TASK:-5}
check_number GPUS "$gpus" 1
check_number GPUS_PER_NODE "$per_node" 1
check_number CPUS_PER_TASK "$cpus" 1
check_files "$3" "$4"
use_python requirements.txt
((per_node <= gpus)) || per_node=$gpus
read -ra more <<<"${PY_ARGS:-}"
# Every node runs this once. The rendezvous is on the first node; the last one may have fewer processes.
# shellcheck disable=SC2016
node='first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
left=$(($1 - $2 * SLURM_NODEID))
exec python -m common.distributed.launcher --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" \
  --master_addr "${MASTER_ADDR:-$first}" --master_port "${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}" \
  --nproc_per_node "$((left < $2 ? left : $2))" "${@:3}"'
submit "$1" "$2" "$5/slurm" --nodes="$(((gpus + per_node - 1) / per_node))" --cpus-per-task="$((cpus * per_node))" \
  --gres="gpu:$per_node" -- \
  bash -c "$node" bash "$gpus" "$per_node" "$3" --cfg "$4" --model-dir "$5" --dist "${more[@]}"
