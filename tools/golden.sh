#!/usr/bin/env bash
# Runs some forty commands on small inputs and prints a SHA-256 for every file that they write.
#
#   bash tools/golden.sh /tmp/before > before.txt      # at one commit
#   bash tools/golden.sh /tmp/after > after.txt        # at another, on the same machine
#   diff before.txt after.txt                          # what the change between them changed
#
# Weights and rows are compared byte for byte. Taken out of all other files, since they differ from run to
# run: paths of the directory, seconds, tokens/s, process ids, and the commit. About five minutes.
set -euo pipefail
out=${1:?a directory to write to}
python=${PYTHON:-.venv/bin/python}
rm -rf "$out"
mkdir -p "$out"
export OMP_NUM_THREADS=1 PYTHONPATH=tests

stage() { # name of the log, then a command: its output, and its exit code, are compared too
  local log=$out/$1.log
  shift
  local code=0
  "$python" "$@" > "$log" 2> "$log.err" || code=$?
  tail -n 1 "$log.err" | grep -v "it/s\|s/it\|video\b.*\]" >> "$log" || true # not the progress bars
  rm "$log.err"
  echo "exit code $code" >> "$log"
}

# The tiny world, and the loop's four stages on it
stage world -m shapes.world "$out/shapes" --videos 6 --benchmark-videos 6
one=$out/round1
stage base evaluate.py --benchmark shapes --model shapes/model --input "$out/shapes/dev" --output "$out/base/eval"
stage generate generate.py --model shapes/model --input "$out/shapes/round1" --output "$one/responses.jsonl"
stage greedy generate.py --model shapes/model --input "$out/shapes/round2" --output "$out/greedy.jsonl" \
  --temperature 0 --spatial 5 --temporal 0 --limit 3 --seed 4
stage shard generate.py --model shapes/model --input "$out/shapes/round1" "$out/shapes/round2" \
  --output "$out/shard.jsonl" --shard 1/3 --limit 7 --top-p 0.8
stage ask generate.py --model shapes/model --input "$out/shapes/dev/videos/dev_0003.mp4" --ask "where is the purple square?"
stage critique critique.py --model shapes/model --input "$one/responses.jsonl" --output "$one/critiques.jsonl"
stage refine refine.py --model shapes/model --input "$one/critiques.jsonl" --output "$one/pairs.jsonl"

# Training in each of its ways
train() { # name, then options
  local name=$1
  shift
  stage "dpo_$name" dpo.py --model shapes/model --input "$one/pairs.jsonl" --output "$one/$name" --lr 1e-4 \
    --videos-per-step 2 "$@"
}
train model --beta 3 --epochs 2
train bfloat16 --beta 3 --dtype bfloat16
train lora --beta 3 --tune lora --lora-rank 4
train ipo --loss ipo --nll-weight 0.5
train smoothing --label-smoothing 0.1 --activation-checkpointing --weight-decay 0.1
train hinge --loss hinge --warmup 0.5 --max-grad-norm 0.1
train sft --loss sft
train sft_rejected --loss sft --sft-on rejected
stage dpo_lora2 dpo.py --model "$one/lora" --input "$one/pairs.jsonl" --output "$out/lora2" --tune lora --lr 1e-4 --seed 2

# Scores, of the tiny world and of the six benchmarks
score() { # model, directory
  stage "eval_$(basename "$2")" evaluate.py --benchmark shapes --model "$1" --input "$out/shapes/dev" --output "$2/eval"
  stage "critic_$(basename "$2")" critique.py --model "$1" --input "$2/eval/predictions.jsonl" --output "$2/eval/critiques.jsonl"
  stage "revise_$(basename "$2")" refine.py --model "$1" --input "$2/eval/critiques.jsonl" --output "$2/eval/pairs.jsonl"
}
score shapes/model "$out/base"
score "$one/lora" "$out/lora_scored"
cp -r "$one/model" "$out/trained"
stage eval_round1 evaluate.py --benchmark shapes --model "$one/model" --input "$out/shapes/dev" --output "$one/eval"
"$python" - "$out" <<'PYTHON'
import pathlib, sys
import small_benchmarks
for name, write in small_benchmarks.WRITERS.items():
    write(pathlib.Path(sys.argv[1]) / "benchmarks" / name)
PYTHON
for name in mvbench perceptiontest tempcompass nextqa egoschema longvideobench; do
  stage "bench_$name" evaluate.py --benchmark "$name" --model shapes/model --input "$out/benchmarks/$name" --output "$out/scores/$name"
done
stage full evaluate.py --benchmark egoschema --full --model shapes/model --input "$out/benchmarks/egoschema" --output "$out/scores/full"
stage rescore evaluate.py --benchmark nextqa --rescore --unparsed random --output "$out/scores/nextqa"

# Tools
stage report -m tools.report "$out"
stage reports -m tools.report "$out/scores/mvbench" "$out/scores/nextqa" "$out/scores/full"
stage card -m tools.card "$out/base/eval"
stage merge -m tools.merge "$one/lora" "$out/merged"
stage memory -m tools.memory tests/fixtures/internvl2_5-8b --devices 3 --activation-checkpointing
stage memory_lora -m tools.memory tests/fixtures/internvl2_5-8b --tune lora --pairs 4
for name in internlm2 qwen2; do
  stage "convert_$name" -m tools.convert "tests/fixtures/internvl2_5-tiny-$name-vit300m" "$out/converted_$name"
done
stage pretrain -m shapes.pretrain "$out/pretrained" --scenes 40 --vision-steps 3 --language-steps 2 2 2

# Mistakes: what is said, and that nothing is left behind
stage finished critique.py --model shapes/model --input "$one/responses.jsonl" --output "$one/critiques.jsonl"
stage other_arguments critique.py --model shapes/model --input "$one/responses.jsonl" --output "$one/critiques.jsonl" --frames 4
stage other_model critique.py --model "$out/trained" --input "$one/responses.jsonl" --output "$one/critiques.jsonl"
stage no_input critique.py --model shapes/model --input "$out/nothing.jsonl" --output "$out/mistakes/a.jsonl"
stage no_model critique.py --model "$out/nothing" --input "$one/responses.jsonl" --output "$out/mistakes/b.jsonl"
stage no_video generate.py --model shapes/model --input "$out/nothing" --output "$out/mistakes/c.jsonl"
stage too_low generate.py --model shapes/model --input "$out/shapes/round1" --output "$out/mistakes/d.jsonl" --limit 0
stage no_key refine.py --model shapes/model --input "$one/responses.jsonl" --output "$out/mistakes/e.jsonl"

cd "$out"
find . -type f ! -name ".*.lock" | sort | while read -r file; do
  case $file in
    *metrics.jsonl | *.json | *.log | *.md)
      sed -i -E "s#$out#OUT#g; s#\"(seconds|tokens/s|process|commit)\": [^,}]+#\"\1\": 0#g; s#seconds, .*#seconds#" "$file"
      ;;
  esac
  if [[ $file == *.meta.json ]]; then # the order of keys does not count
    sorted=$(python3 -m json.tool --sort-keys "$file")
    echo "$sorted" > "$file"
  fi
  sha256sum "$file"
done
