#!/usr/bin/env bash
# Draws the toy world, trains on it, validates and writes test files; no download of data, no GPU.
# Run again after an interruption, it continues.
# Usage: scripts/quickstart.sh [vcr]
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
task=${1:-vcr}
[[ $# -le 1 && $task == vcr ]] || die "usage: $0 [TASK]; the tasks it knows: vcr" 2
use_python requirements.txt

output=output/toy/vcr
results=$output/results
q2a=(cfgs/vcr/toy_q2a.yaml "$output/toy_q2a/vcr1images_train/toy_a-best.model")
qa2r=(cfgs/vcr/toy_qa2r.yaml "$output/toy_qa2r/vcr1images_train/toy_r-best.model")
models=(--a-cfg "${q2a[0]}" --a-ckpt "${q2a[1]}" --r-cfg "${qa2r[0]}" --r-ckpt "${qa2r[1]}"
  --gpus -1 --result-path "$results" --result-name toy)

say() { printf '\n== %s\n' "$1"; }

train() { # CFG: shows progress; everything is in the log file of the run
  python vcr/train_end2end.py --cfg "$1" --model-dir . |
    awk '/PROGRESS|Epoch\[|Best Val|continue/ { print; fflush() }'
}

say "Drawing the toy world into toy/"
python scripts/make_toy_data.py --out toy --tasks vcr

say "Learning to answer questions (Q->A)"
train "${q2a[0]}"
say "Learning to choose rationales (QA->R)"
train "${qa2r[0]}"

say "Validating both"
mkdir -p "$results"
python vcr/val.py "${models[@]}" | tee "$results/val.txt"
say "Writing the leaderboard files of the test split"
python vcr/test.py "${models[@]}"

say "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "Accuracy in percent on $(grep -c . toy/vcr/val.jsonl) validation questions:"
awk -F '\t' 'BEGIN { printf "%-8s%10s%10s\n", "", "learned", "chance" }
  /^Q/ { printf "%-8s%10s%10s\n", $1, $2, $1 == "Q->AR" ? "6.2" : "25.0" }' "$results/val.txt"
cat <<TXT

data         toy/vcr (what it holds: data/PREPARE_DATA.md)
checkpoints  ${q2a[1]}
             ${qa2r[1]}
logs         in the same folders, with event files for tensorboard
results      $results
TXT
