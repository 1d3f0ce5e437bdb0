#!/usr/bin/env bash
# Trains in one process, or in one process per GPU if GPUS of the yaml file lists several.
# Usage: scripts/nondist_run.sh SCRIPT CFG MODEL_DIR [more arguments of SCRIPT]
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
[[ $# -ge 3 ]] || die "usage: $0 SCRIPT CFG MODEL_DIR [more arguments of SCRIPT]" 2
check_files "$1" "$2"
use_python requirements.txt
exec python "$1" --cfg "$2" --model-dir "$3" "${@:4}"
