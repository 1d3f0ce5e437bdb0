#!/usr/bin/env bash
# Draws the toy world, trains on it, validates, and writes test files. Needs no downloaded data and no GPU.
# After an interruption, the same command resumes.
# Usage: scripts/quickstart.sh [vcr | vqa | refcoco | pretrain | all]
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"
all_tasks=(vcr vqa refcoco pretrain)
task=${1:-vcr}
[[ $# -le 1 && " ${all_tasks[*]} all " == *" $task "* ]] || die "usage: $0 [TASK]; tasks: ${all_tasks[*]} all" 2
[[ $task == all ]] && tasks=("${all_tasks[@]}") || tasks=("$task")
use_python requirements.txt
output=output/toy

say() { printf '\n== %s\n' "$1"; }

train() { # TASK CFG: prints progress only; the full log is in the output folder
  python "$1/train_end2end.py" --cfg "$2" --model-dir . |
    awk '/PROGRESS|Epoch\[|Best Val|continue/ { print; fflush() }'
}

train_detector() { # initializes the image branch of models that read pixels; does nothing the second time
  say "Training the toy detector"
  python -m scripts.toy.detector --cfg cfgs/pretrain/toy_e2e.yaml
}

run_vcr() { # RESULTS
  local q2a=(cfgs/vcr/toy_q2a.yaml "$output/vcr/toy_q2a/vcr1images_train/toy_a-best.model")
  local qa2r=(cfgs/vcr/toy_qa2r.yaml "$output/vcr/toy_qa2r/vcr1images_train/toy_r-best.model")
  local models=(--a-cfg "${q2a[0]}" --a-ckpt "${q2a[1]}" --r-cfg "${qa2r[0]}" --r-ckpt "${qa2r[1]}"
    --gpus -1 --result-path "$1" --result-name toy)
  train_detector
  say "Training VCR answers (Q->A)"
  train vcr "${q2a[0]}"
  say "Training VCR rationales (QA->R)"
  train vcr "${qa2r[0]}"
  say "Validating both models and writing the leaderboard file of the test split"
  python vcr/val.py "${models[@]}" | tee "$1/val.txt"
  python vcr/test.py "${models[@]}"
  awk -F '\t' '/^Q/ { printf "vcr %s\t%s\t%s\n", $1, $2, $1 == "Q->AR" ? "6.2" : "25.0" }' "$1/val.txt" >>"$summary"
}

run_vqa() { # RESULTS
  say "Training VQA"
  train vqa cfgs/vqa/toy.yaml
  say "Validating with the official accuracy and writing the answers for the test split"
  python vqa/val.py --cfg cfgs/vqa/toy.yaml --model-dir . --gpus -1 --result-path "$1" | tee "$1/val.txt"
  python vqa/test.py --cfg cfgs/vqa/toy.yaml --model-dir . --gpus -1 --result-path "$1"
  awk '/^overall/ { printf "vqa accuracy\t%s\t41.1\n", $NF }' "$1/val.txt" >>"$summary"
}

run_refcoco() { # RESULTS
  train_detector
  say "Training RefCOCO+"
  train refcoco cfgs/refcoco/toy.yaml
  say "Testing on val, testA and testB"
  local split
  for split in val testA testB; do
    python refcoco/test.py --cfg cfgs/refcoco/toy.yaml --model-dir . --gpus -1 --split "$split" --result-path "$1" |
      tee "$1/$split.txt"
    awk -v part="$split" '/ Accuracy: / { sub(/\.$/, "", $NF); printf "refcoco+ %s\t%.1f\t25\n", part, $NF; exit }' \
      "$1/$split.txt" >>"$summary"
  done
}

pretrain_on() { # INPUT CFG RESULTS: trains, validates, and measures how much the model relies on the image
  local model=(--cfg "$2" --model-dir . --gpus -1 --result-path "$3") words
  mkdir -p "$3"
  train pretrain "$2"
  say "Validating, and predicting masked colors and nouns with and without the image"
  python pretrain/val.py "${model[@]}" | tee "$3/val.txt"
  words=$(python -c 'from scripts.toy.world import CATEGORIES, COLORS; print(*COLORS, *(c.noun for c in CATEGORIES), sep=",")')
  python scripts/probe_masked_words.py "${model[@]}" --words "$words" | tee "$3/visible.txt"
  python scripts/probe_masked_words.py "${model[@]}" --words "$words" --blank-regions | tee "$3/blank.txt"
  awk -F '\t' -v from="$1" '$1 == "MVRCAccuracy" { printf "masked regions %s\t%.1f\t-\n", from, 100 * $2 }' \
    "$3/val.txt" >>"$summary"
  awk -F '\t' -v from="$1" '$1 == "overall" { accuracy[FILENAME] = 100 * $2 }
    END { printf "masked words %s\t%.1f\t%.1f\n", from, accuracy[ARGV[1]], accuracy[ARGV[2]] }' \
    "$3/visible.txt" "$3/blank.txt" >>"$summary"
}

run_pretrain() { # RESULTS
  say "Pre-training on captions with region features, and on a text corpus"
  pretrain_on "from features" cfgs/pretrain/toy_prec.yaml "$1"
  train_detector
  say "Pre-training on captions with images, and on a text corpus"
  pretrain_on "from pixels" cfgs/pretrain/toy_e2e.yaml "$1/pixels"
}

say "Drawing the toy world into toy/"
python scripts/make_toy_data.py --out toy --tasks "${all_tasks[@]}"
mkdir -p "$output"
summary=$output/summary.txt
: >"$summary"
for name in "${tasks[@]}"; do
  mkdir -p "$output/$name/results"
  "run_$name" "$output/$name/results"
done

say "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
echo "Accuracy in percent on held-out images of the toy world:"
awk -F '\t' 'BEGIN { printf "%-30s%10s%16s\n", "", "learned", "blind or chance" }
  { printf "%-30s%10s%16s\n", $1, $2, $3 }' "$summary"
cat <<TXT

data     toy (layout: data/PREPARE_DATA.md)
results  $(printf "$output/%s/results " "${tasks[@]}")
runs     $output: checkpoints, logs, tensorboard event files
TXT
