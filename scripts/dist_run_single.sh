#!/usr/bin/env bash
# Trains with several processes on this machine, one per GPU.
# Usage: scripts/dist_run_single.sh NUM_PROCESSES SCRIPT CFG MODEL_DIR [more arguments of SCRIPT]
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
[[ $# -ge 4 ]] || die "usage: $0 NUM_PROCESSES SCRIPT CFG MODEL_DIR [more arguments of SCRIPT]" 2
use_python requirements.txt
exec python -m torch.distributed.run --standalone --nproc_per_node "$1" "$2" --cfg "$3" --model-dir "$4" --dist "${@:5}"
