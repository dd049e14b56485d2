#!/usr/bin/env bash
# Four rounds of self-alignment in the tiny world: what `make loop` runs. Started again, it resumes.
#
#   bash shapes/loop.sh [dev|test] [directory of the run] [options of tools/loop.sh]
#
# Such an option is --prompts shapes/prompts/teacher.json.
# Scoring, the only step that sees the truth, runs beside the next round: a laptop has two cores.
set -euo pipefail
benchmark=${1:-test}
run=${2:-runs/loop}
export OMP_NUM_THREADS=1  # a model this small is slower on two threads than on one

python -m shapes.world runs/shapes
# Learning rates: smaller every round, since the critic gets weaker, so its pairs can be trusted less
exec bash tools/loop.sh --model shapes/model --videos 'runs/shapes/round{round}' --run "$run" \
  --rounds 4 --lrs 1e-4 2e-5 1e-5 5e-6 --videos-per-batch 4 \
  --benchmark shapes "runs/shapes/$benchmark" --beside "${@:3}" -- --beta 3 --epochs 2
