#!/usr/bin/env bash
# Trains on several machines: start it on each of them, with its own NODE_RANK (0, 1, ...).
# Usage: scripts/dist_run_multi.sh NUM_NODES NODE_RANK MASTER_ADDRESS PROCESSES_PER_NODE SCRIPT CFG MODEL_DIR [...]
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
[[ $# -ge 7 ]] || die "usage: $0 NUM_NODES NODE_RANK MASTER_ADDRESS PROCESSES_PER_NODE SCRIPT CFG MODEL_DIR [...]" 2
use_python requirements.txt
exec python -m torch.distributed.run --nnodes "$1" --node_rank "$2" --master_addr "$3" \
  --master_port "${MASTER_PORT:-29500}" --nproc_per_node "$4" "$5" --cfg "$6" --model-dir "$7" --dist "${@:8}"
