# Sourced by the SLURM scripts: everything in `_env.sh`, and `submit`.
# shellcheck shell=bash
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

# Submits a job that runs COMMAND on every node, follows its output, and exits with its status. The job continues if
# this terminal is closed. Two minutes before the time limit the run gets SIGUSR1, saves a checkpoint, and is requeued.
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
    job=${job%%;*} # sbatch may append the name of the cluster
    echo "${0##*/}: job $job, output in $folder/$name-$job.out; scancel $job ends it, Ctrl-C does not" >&2
    trap 'exit 130' INT
    tail --lines=+1 --follow=name --retry --pid="$waiting" "$folder/$name-$job.out" 2>/dev/null &
    wait "$waiting" || status=$?
    wait "$!" || true
  else
    wait "$waiting" || status=$? # sbatch has printed the reason
  fi
  exit "$status"
}
