#!/usr/bin/env bash
# Trains with several processes on this machine, one per GPU, or all on the CPU if there is no GPU.
# Usage: scripts/dist_run_single.sh NUM_PROCESSES SCRIPT CFG MODEL_DIR [more arguments of SCRIPT]
# The rendezvous port is MASTER_PORT if set, otherwise a free port.
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
[[ $# -ge 4 ]] || die "usage: $0 NUM_PROCESSES SCRIPT CFG MODEL_DIR [more arguments of SCRIPT]" 2
check_number NUM_PROCESSES "$1" 1
check_files "$2" "$3"
check_number MASTER_PORT "${MASTER_PORT:-1}" 1 65535
use_python requirements.txt
rendezvous=(--standalone --local_addr 127.0.0.1)
[[ -z ${MASTER_PORT:-} ]] || rendezvous=(--master_addr 127.0.0.1 --master_port "$MASTER_PORT")
exec python -m common.distributed.launcher "${rendezvous[@]}" --nproc_per_node "$1" "$2" --cfg "$3" --model-dir "$4" --dist "${@:5}"
