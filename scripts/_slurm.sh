# Sourced by the SLURM scripts: what `_env.sh` gives, and `submit`.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

# Runs COMMAND on every node of a job that outlives this terminal, shows what it prints, ends with its status.
# The run is told 2 minutes before the time limit, saves itself, and the job is queued again.
submit() { # PARTITION NAME FOLDER [options of sbatch] -- COMMAND [arguments]
  local partition=$1 name=$2 folder=$3 options=() more job waiting status=0
  shift 3
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  read -ra more <<<"${SRUN_ARGS:-}"
  mkdir -p "$folder"
  exec 3< <(exec sbatch --wait --parsable --partition="$partition" --job-name="$name" --ntasks-per-node=1 \
    --output="$folder/%x-%j.out" --open-mode=append --requeue --signal=USR1@120 \
    "${options[@]}" "${more[@]}" scripts/job_slurm.sh "$@")
  waiting=$!
  if read -r job <&3; then
    job=${job%%;*} # a cluster's name may follow
    echo "${0##*/}: job $job, printing to $folder/$name-$job.out; scancel $job ends it, Ctrl-C leaves it alone" >&2
    trap 'exit 130' INT
    tail --lines=+1 --follow=name --retry --pid="$waiting" "$folder/$name-$job.out" 2>/dev/null &
    wait "$waiting" || status=$?
    wait "$!" || true
  else
    wait "$waiting" || status=$? # sbatch has said why
  fi
  exit "$status"
}
