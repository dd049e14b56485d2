#!/usr/bin/env bash
# Rounds of self-alignment in the tiny world: what `make loop` runs. Started again, it resumes.
#
#   bash shapes/loop.sh [dev|test] [directory of the run] [options of tools/loop.sh]
#
# Such an option is --prompts shapes/prompts/teacher.json. Two variables of the environment choose
#
#   RECIPE=shapes/recipes/paper.txt    options of tools/loop.sh, in a file
#   SEED=0                             the world: other videos, made in the same way
#
# Scoring, the only step that sees the truth, runs beside the next round: a laptop has two cores.
# No -u: the bash of macOS takes an empty array, such as of a recipe without --, for an unset one
set -eo pipefail
recipe=${RECIPE:-shapes/recipes/paper.txt}
seed=${SEED:-0}
own=''  # of another world or recipe: its directories have names of their own
[[ $seed == 0 ]] || own+=-$seed
world=runs/shapes$own
[[ $recipe == shapes/recipes/paper.txt ]] || own+=-$(basename "$recipe" .txt)
benchmark=${1:-test}
run=${2:-runs/loop$own}
export OMP_NUM_THREADS=1  # a model this small is slower on two threads than on one

if [[ ! -f $recipe ]]; then
  echo "RECIPE=$recipe: no such file; shapes/recipes/ has some" >&2
  exit 2
fi
options=() training=()  # of tools/loop.sh, and of dpo.py, which stand behind --
behind=''  # whether -- came already
for word in $(sed 's/#.*//' "$recipe"); do
  if [[ $word == -- ]]; then behind=yes
  elif [[ $behind ]]; then training+=("$word")
  else options+=("$word")
  fi
done

python -m shapes.world "$world" --seed "$seed"
exec bash tools/loop.sh --model shapes/model --videos "$world/round{round}" --run "$run" \
  "${options[@]}" --benchmark shapes "$world/$benchmark" --beside "${@:3}" -- "${training[@]}"
