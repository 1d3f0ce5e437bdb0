#!/usr/bin/env bash
# The job that the SLURM scripts submit: runs COMMAND once on every node. If the run exits with status 75 after saving
# a checkpoint, as it does before the time limit, the job is requeued and resumes.
# Usage: sbatch [options of sbatch] scripts/job_slurm.sh COMMAND [arguments]
set -uo pipefail
[[ $# -ge 1 && -n ${SLURM_JOB_ID:-} ]] || {
  echo "usage: sbatch [options of sbatch] $0 COMMAND [arguments]" >&2
  exit 2
}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit it from the job

# The first node that exits must not kill the others while they save; after a minute the rest is killed.
srun --kill-on-bad-exit=0 --wait=60 "$@"
status=$?

# 138: SIGUSR1 arrived before its handler was installed, so there is nothing to save. A job that was cancelled or ran
# out of time is no longer RUNNING.
if [[ $status =~ ^(75|138)$ && $(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T) == RUNNING ]]; then
  echo "job $SLURM_JOB_ID: saved; requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
