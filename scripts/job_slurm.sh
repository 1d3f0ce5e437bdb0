#!/usr/bin/env bash
# The job that the SLURM scripts submit: runs COMMAND once on every node. Where the run has saved itself and ended
# with status 75, as before the time limit, the job is queued again and the run goes on where it was.
# Usage: sbatch [options of sbatch] scripts/job_slurm.sh COMMAND [arguments]
set -uo pipefail
[[ $# -ge 1 && -n ${SLURM_JOB_ID:-} ]] || {
  echo "usage: sbatch [options of sbatch] $0 COMMAND [arguments]" >&2
  exit 2
}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer takes it from the job

# A node that ends must not kill the others while they save; what waits for it in vain is ended after a minute.
srun --kill-on-bad-exit=0 --wait=60 "$@"
status=$?

# 138: SIGUSR1 came before the run could take it, so there is nothing to save. A job that was cancelled or has run out
# of its time is not RUNNING any more.
if [[ $status =~ ^(75|138)$ && $(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T) == RUNNING ]]; then
  echo "job $SLURM_JOB_ID: saved; queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
