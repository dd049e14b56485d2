#!/usr/bin/env bash
# Rounds of self-alignment with any model, by the stages' own commands. Started again, it resumes.
#
#   bash tools/loop.sh --model M --videos DIR [DIR ...] --run RUN [options] [-- options of dpo.py]
#
#   --model M              directory of a checkpoint or of a LoRA adapter, or hub name
#   --videos DIR ...       directories of videos: one pool for all rounds. Where {round} is in a
#                          DIR, it stands for the round's number: each round has its own videos
#   --run RUN              directory that is written: RUN/round1/, RUN/round2/, ...
#   --rounds N             number of rounds (4)
#   --limit N              videos of a round: of a pool every round takes the next N (without it,
#                          every round takes all)
#   --lrs LR ...           dpo.py's learning rate, one for each round (dpo.py's default)
#   --temperature T        answers are sampled at T; at 0 they are greedy (generate.py's default: 1)
#   --gate critic|none     what makes a pair: a revision where the critic names an error, or every
#                          revision that differs (critic)
#   --critic M             criticises and revises in all rounds (the model of each round)
#   --replay               each round trains the first model anew, on the pairs of all rounds so far
#   --prompts FILE         prompts, kinds of questions and error types of your own: docs/prompts.md
#   --frames N             frames of a video, in all stages (the checkpoint's)
#   --frame-tokens LEAST MOST   Qwen-VL: tokens of two frames, in all stages (the checkpoint's)
#   --processes N          processes that answer, such as one a GPU: torchrun starts them (1)
#   --train-processes N    processes that train together, one a GPU (FSDP2): torchrun starts them.
#                          One trains by python, its layers spread over all GPUs (1)
#   --videos-per-batch V   videos whose answers are decoded together (1)
#   --benchmark NAME DIR   score the base and the model of every round: RUN/base/eval, ...
#   --beside               score beside the next round; what that prints is in RUN/*/eval.log
#   --dry-run              print all commands, ready to paste, and run none
#
# What stands after -- goes to dpo.py, behind all else, so that it wins. For example, two rounds, of
# 1000 videos each, that train LoRA's factors alone:
#
#   bash tools/loop.sh --model InternVL2_5-8B-native --videos my_videos --run runs/real \
#       --rounds 2 --limit 1000 -- --tune lora --activation-checkpointing

# No -u: the bash of macOS takes an empty array for an unset one
set -eo pipefail

# ------------------------------------------------------------------------------
# The command line

refuse() {
  echo "loop.sh: error: $*; bash tools/loop.sh --help shows all options" >&2
  exit 2
}

check_number() {  # option, value
  [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || refuse "$1 $2: it must be a whole number from 1 on"
}

given='' model='' videos=() run='' rounds=4 limit='' lrs=() benchmark=() beside='' dry_run=''
critic='' replay=''
sampling=() gate=() prompts=() frames=() batches=() training=()  # options as the stages take them
processes=1
train_processes=1
while (($#)); do
  option=$1
  shift
  values=()
  [[ " $given " != *" $option "* ]] || refuse "$option is there twice"
  given+=" $option"
  if [[ $option == -- ]]; then
    training=("$@")
    break
  fi
  while (($#)) && [[ $1 != -* ]]; do
    values+=("$1")
    shift
  done

  wanted=1  # values
  case $option in
    --help | -h) sed -n '1d; /^$/q; s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --model) model=${values[0]} ;;
    --videos) videos=("${values[@]}") wanted=${#values[@]} ;;
    --run) run=${values[0]} ;;
    --rounds) rounds=${values[0]} ;;
    --limit) limit=${values[0]} ;;
    --lrs) lrs=("${values[@]:-}") wanted=${#lrs[@]} ;;
    --temperature) sampling=(--temperature "${values[0]}") ;;
    --gate) gate=(--gate "${values[0]}") ;;
    --critic) critic=${values[0]} ;;
    --replay) replay=yes wanted=0 ;;
    --prompts) prompts=(--prompts "${values[0]}") ;;
    --frames) frames+=(--frames "${values[0]}") ;;
    --frame-tokens) frames+=(--frame-tokens "${values[@]}") wanted=2 ;;
    --processes) processes=${values[0]} ;;
    --train-processes) train_processes=${values[0]} ;;
    --videos-per-batch) batches=(--videos-per-batch "${values[0]}") ;;
    --benchmark) benchmark=("${values[@]}") wanted=2 ;;
    --beside) beside=yes wanted=0 ;;
    --dry-run) dry_run=yes wanted=0 ;;
    --overwrite) refuse "--overwrite would lose finished rounds: begin another --run" ;;
    *) refuse "$option is no option here (those of dpo.py stand after --)" ;;
  esac
  ((${#values[@]} == wanted)) || refuse "$option takes $wanted value(s), not ${#values[@]}"
done

[[ $model ]] || refuse "--model M is missing"
[[ ${videos[0]} ]] || refuse "--videos DIR is missing"
[[ $run ]] || refuse "--run RUN is missing"
check_number --rounds "$rounds"
[[ ! $limit ]] || check_number --limit "$limit"
for value in "${frames[@]}"; do
  [[ $value == --frame* ]] || check_number --frames "$value"
done
[[ ! ${batches[1]} ]] || check_number --videos-per-batch "${batches[1]}"
check_number --processes "$processes"
check_number --train-processes "$train_processes"
[[ ! ${gate[1]} || ${gate[1]} =~ ^(critic|none)$ ]] || refuse "--gate ${gate[1]}: critic or none"
[[ ! ${prompts[1]} || -f ${prompts[1]} ]] || refuse "--prompts ${prompts[1]}: no such file;" \
  "python generate.py --prompts list > FILE writes the default ones"
for lr in "${lrs[@]}"; do
  [[ $lr =~ ^([0-9]+\.?[0-9]*|\.[0-9]+)([eE]-?[0-9]+)?$ ]] || refuse "--lrs $lr: it is no number"
done
((${#lrs[@]} == 0 || ${#lrs[@]} == rounds)) || refuse "--lrs has ${#lrs[@]} for $rounds rounds"
[[ -f generate.py ]] || refuse "$PWD has no generate.py; start it from the repository's root"
[[ $dry_run ]] || command -v python > /dev/null ||
  refuse "there is no python; source .venv/bin/activate first"

n_own=0  # directories of which every round has its own
for directory in "${videos[@]}"; do
  [[ $directory != *'{round}'* ]] || ((++n_own))
done
((n_own == 0 || n_own == ${#videos[@]})) || refuse "--videos: {round} in all of the DIRs or in none"

# ------------------------------------------------------------------------------
# What is run

answer=(python)  # starts a stage that answers
train=(python)  # starts dpo.py
several=()  # how tools.needs is told of it
if ((processes > 1)); then
  answer=(torchrun --standalone --nproc-per-node "$processes")
  several+=(--processes "$processes")
fi
if ((train_processes > 1)); then
  train=(torchrun --standalone --nproc-per-node "$train_processes")
  several+=(--train-processes "$train_processes")
fi
common=("${frames[@]}" "${prompts[@]}" "${batches[@]}")  # options of all stages that answer

# Print a command, then run it
call() {
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
  [[ $dry_run ]] || "$@"
}

# Score a model; in the tiny world its critiques and its revisions, too
score() {  # model, directory of the round
  local eval=$2/eval
  call "${answer[@]}" evaluate.py --benchmark "${benchmark[0]}" --model "$1" \
    --input "${benchmark[1]}" --output "$eval" "${common[@]}"
  [[ ${benchmark[0]} == shapes ]] || return 0
  call "${answer[@]}" critique.py --model "$1" --input "$eval/predictions.jsonl" \
    --output "$eval/critiques.jsonl" "${common[@]}"
  # That no answer was revised is a score as well, though it is an error where pairs are wanted
  call "${answer[@]}" refine.py --model "$1" --input "$eval/critiques.jsonl" \
    --output "$eval/pairs.jsonl" "${common[@]}" "${gate[@]}" ||
    grep -qs '"kept": 0' "$eval/pairs.jsonl.meta.json"
}

scoring=''  # the process that scores beside a round
# Score now, or beside the next round when the model before it has been scored
start_scoring() {  # model, directory of the round
  [[ ${benchmark[0]} ]] || return 0
  if [[ ! $beside || $dry_run ]]; then
    score "$1" "$2"
    return
  fi
  finish_scoring
  log=$2/eval.log
  mkdir -p "$2"
  set -m  # a process group of its own, which can be stopped as a whole
  score "$1" "$2" > "$log" 2>&1 &
  scoring=$!
  set +m
}

# A stage of a round. If it fails, what is being scored is finished first, but for Ctrl-C
stage() {
  local status=0
  call "$@" || status=$?
  ((status)) || return 0
  ((status >= 128)) || [[ ! $scoring ]] || wait "$scoring" || true
  exit "$status"
}

finish_scoring() {
  [[ ! $scoring ]] || wait "$scoring" || { cat "$log"; scoring=''; exit 1; }
  scoring=''
}

stop_scoring() {
  [[ ! $scoring ]] || { kill -- "-$scoring"; wait "$scoring"; } 2> /dev/null || true
}
trap stop_scoring EXIT

call python -m tools.needs --model "$model" --videos "${videos[@]}" --run "$run" \
  --rounds "$rounds" ${limit:+--limit "$limit"} "${frames[@]}" "${prompts[@]}" "${batches[@]}" \
  "${sampling[@]}" ${critic:+--critic "$critic"} "${several[@]}" \
  ${benchmark:+--benchmark "${benchmark[@]}"} -- "${training[@]}"
start_scoring "$model" "$run/base"
first=$model
pairs=()  # files of pairs that a round trains on
for ((round = 1; round <= rounds; round++)); do
  echo "# round $round"
  out=$run/round$round
  which=(${limit:+--limit "$limit"})
  if [[ $limit ]] && ((n_own == 0)); then  # one pool
    which=(--skip "$(((round - 1) * limit))" --limit "$limit")
  fi
  lr=${lrs[round - 1]}

  stage "${answer[@]}" generate.py --model "$model" --input "${videos[@]//\{round\}/$round}" \
    --output "$out/responses.jsonl" --seed "$round" "${which[@]}" "${sampling[@]}" \
    "${common[@]}"
  stage "${answer[@]}" critique.py --model "${critic:-$model}" --input "$out/responses.jsonl" \
    --output "$out/critiques.jsonl" "${common[@]}"
  stage "${answer[@]}" refine.py --model "${critic:-$model}" --input "$out/critiques.jsonl" \
    --output "$out/pairs.jsonl" "${common[@]}" "${gate[@]}"

  if [[ $replay ]]; then
    before=$first
    pairs+=("$out/pairs.jsonl")
  else
    before=$model
    pairs=("$out/pairs.jsonl")
  fi
  stage "${train[@]}" dpo.py --model "$before" --input "${pairs[@]}" --output "$out/model" \
    --seed "$round" ${lr:+--lr "$lr"} "${frames[@]}" "${training[@]}"
  model=$out/model
  start_scoring "$model" "$out"
done
finish_scoring
call python -m tools.report "$run"
call python -m tools.page "$run"
