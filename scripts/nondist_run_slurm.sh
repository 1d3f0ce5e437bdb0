#!/usr/bin/env bash
# Trains on one node of a SLURM cluster with GPUS GPUs (default 8): in one process, or in one per GPU of the yaml file.
# Usage: scripts/nondist_run_slurm.sh PARTITION JOB_NAME SCRIPT CFG MODEL_DIR [GPUS]
# Environment: CPUS_PER_TASK (40), SRUN_ARGS for the job ("--time=8:00:00"; "--gres=none" trains
# on a CPU), PY_ARGS for SCRIPT.
source "$(dirname "${BASH_SOURCE[0]}")/_slurm.sh"
[[ $# -eq 5 || $# -eq 6 ]] || die "usage: $0 PARTITION JOB_NAME SCRIPT CFG MODEL_DIR [GPUS]" 2
check_number GPUS "${6:-8}" 1
check_number CPUS_PER_TASK "${CPUS_PER_TASK:-40}" 1
check_files "$3" "$4"
use_python requirements.txt
read -ra more <<<"${PY_ARGS:-}"
submit "$1" "$2" "$5/slurm" --nodes=1 --cpus-per-task="${CPUS_PER_TASK:-40}" --gres="gpu:${6:-8}" -- \
  python -u "$3" --cfg "$4" --model-dir "$5" "${more[@]}"
