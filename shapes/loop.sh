#!/usr/bin/env bash
# Four rounds of self-alignment in the tiny world: what `make loop` runs. Started again, it resumes.
#
#   bash shapes/loop.sh [dev|test] [directory of the run]
#
# Scoring, the only step that sees the truth, runs beside the next round: a laptop has two cores.
set -euo pipefail
benchmark=${1:-test}
run=${2:-runs/loop}
export OMP_NUM_THREADS=1  # a model this small is slower on two threads than on one

# Score a model: its answers to the benchmark, its critiques of them, its revisions
score() {  # model, directory of the round
  python evaluate.py --benchmark shapes --model "$1" --input "runs/shapes/$benchmark" --output "$2/eval"
  python critique.py --model "$1" --input "$2/eval/predictions.jsonl" --output "$2/eval/critiques.jsonl"
  python refine.py --model "$1" --input "$2/eval/critiques.jsonl" --output "$2/eval/pairs.jsonl"
}

python -m shapes.world runs/shapes
model=shapes/model
mkdir -p "$run/base"
score "$model" "$run/base" > "$run/base/eval.log" 2>&1 &
scoring=$!
# Smaller every round: the critic gets weaker, so its pairs can be trusted less
lrs=(0 1e-4 5e-5 3e-5 5e-6)
for round in 1 2 3 4; do
  out=$run/round$round
  echo "---- round $round"
  python generate.py --model "$model" --input "runs/shapes/round$round" --output "$out/responses.jsonl" --seed "$round"
  python critique.py --model "$model" --input "$out/responses.jsonl" --output "$out/critiques.jsonl"
  python refine.py --model "$model" --input "$out/critiques.jsonl" --output "$out/pairs.jsonl"
  python dpo.py --model "$model" --input "$out/pairs.jsonl" --output "$out/model" --beta 3 --lr "${lrs[$round]}" --epochs 2 --seed "$round"
  wait "$scoring" || { cat "$run"/*/eval.log; exit 1; }
  model=$out/model
  score "$model" "$out" > "$out/eval.log" 2>&1 &
  scoring=$!
done
wait "$scoring" || { cat "$run"/*/eval.log; exit 1; }
python -m tools.report "$run"
