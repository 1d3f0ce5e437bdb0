#!/usr/bin/env bash
# Runs init.sh on a node of a SLURM cluster: installs what is missing and prints the versions in use.
# Usage: scripts/init_slurm.sh PARTITION JOB_NAME [GPUS]
# Environment: CPUS_PER_TASK (5), SRUN_ARGS.
source "$(dirname "${BASH_SOURCE[0]}")/_slurm.sh"
[[ $# -eq 2 || $# -eq 3 ]] || die "usage: $0 PARTITION JOB_NAME [GPUS]" 2
gpus=${3:-${GPUS_PER_NODE:-1}}
check_number GPUS "$gpus" 1
check_number CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1
read -ra more <<<"${SRUN_ARGS:-}"
exec srun --partition="$1" --job-name="$2" --ntasks=1 --gres="gpu:$gpus" --cpus-per-task="${CPUS_PER_TASK:-5}" \
  "${more[@]}" scripts/init.sh
