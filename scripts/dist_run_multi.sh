#!/usr/bin/env bash
# Trains on several machines: start it on each machine with its own NODE_RANK (0, 1, ...); node 0 is MASTER_ADDRESS.
# Usage: scripts/dist_run_multi.sh NUM_NODES NODE_RANK MASTER_ADDRESS PROCESSES_PER_NODE SCRIPT CFG MODEL_DIR [...]
# The rendezvous port is MASTER_PORT if set, otherwise a hash of the other arguments.
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
[[ $# -ge 7 ]] || die "usage: $0 NUM_NODES NODE_RANK MASTER_ADDRESS PROCESSES_PER_NODE SCRIPT CFG MODEL_DIR [...]" 2
check_number NUM_NODES "$1" 1
check_number NODE_RANK "$2" 0 "$((10#$1 - 1))"
check_number PROCESSES_PER_NODE "$4" 1
check_files "$5" "$6"
check_number MASTER_PORT "${MASTER_PORT:-1}" 1 65535
use_python requirements.txt
# Nodes cannot agree on a free port before the rendezvous; a hash of the arguments differs between runs.
port=${MASTER_PORT:-$((20000 + $(printf '%s\n' "$1" "$3" "${@:5}" | cksum | cut -d ' ' -f 1) % 10000))}
echo "${0##*/}: node $2 of $1, rendezvous at $3:$port" >&2
exec python -m common.distributed.launcher --nnodes "$1" --node_rank "$2" --master_addr "$3" --master_port "$port" \
  --nproc_per_node "$4" "$5" --cfg "$6" --model-dir "$7" --dist "${@:8}"
