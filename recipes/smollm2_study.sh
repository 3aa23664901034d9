#!/usr/bin/env bash
# The study on a real model: what each stage of FinDAP (arXiv:2501.04961) brings SmolLM2-135M-Instruct.
#
#   recipes/smollm2_study.sh MODEL DATA [OUT]
#
# MODEL  the checkpoint folder of HuggingFaceTB/SmolLM2-135M-Instruct
# DATA   a folder of yours, with what of this is at hand:
#          finance_text, general_text, finance_chat, general_chat   each a folder, or a file .jsonl:
#                        rows for training, of any shape that curate.py convert reads
#          cpt_bundle/cpt_train.jsonl                       finance text
#          gsm8k/, dm_mathematics/, finqa_subset/, convfinqa/, headlines/   see smollm2_rows.py
#          TASK/, cra_TASK/ or TASK_fin/                    for each task of `evaluate.py --list` its source
#        All four kinds of training rows are needed, and at least one task; what a task brings along to
#        train on is used where the paper does, too (the tasks that its training is similar to).
# OUT    where everything goes, default out/smollm2_study
#
# SIZE=gpu (default with CUDA; one GPU, minutes an arm) or cpu (about 20 minutes of one core in all):
#
#   cpt          text alone                     it        instructions alone            gpu only
#   cpt_then_it  one after the other                                                    gpu only
#   joint        both in one stream: half text and half instructions; text half finance and half
#                general, of the instructions a fifth finance
#   aligned      joint, then DPO on its own solutions of exercises, told right or wrong by rule
#
# SEEDS="0 1 2 3 4": order and choice of the rows, samples. Fewer than five decide nothing. With
# JUDGE_URL (an OpenAI-compatible endpoint, its model in JUDGE_MODEL) it judges solutions and MT-Bench,
# TAT-QA, FinanceBench. What is done is not done again; a stopped run goes on. Ends with
#
#   OUT/smollm2.json, OUT/smollm2.md    the findings with their intervals, every arm's means
#   OUT/seed0/board/board.html          every task of every arm
#   OUT/curated/*.dropped.jsonl         training rows that hold what the evaluation asks, and others
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,31s/^# \{0,1\}//p' "$0"; exit 2; }
stop() { echo "error: $*" >&2; exit 1; }
[ -d "$1" ] || stop "MODEL: $1 is no folder"
[ -d "$2" ] || stop "DATA: $2 is no folder"
model=$(realpath "$1") data=$(realpath "$2") out=${3:-out/smollm2_study} seeds=${SEEDS:-0}
for file in config.json tokenizer.json; do
  [ -f "$model/$file" ] || stop "MODEL: $model has no $file"
done
ls "$model"/*.safetensors >/dev/null 2>&1 || stop "MODEL: $model has no *.safetensors"
source env.sh
make_env -r requirements.txt matplotlib==3.11.2 pyarrow==26.0.1

if [ -z "${SIZE:-}" ]; then
  SIZE=$(python -c 'import torch; print("gpu" if torch.cuda.is_available() else "cpu")')
fi
case $SIZE in
gpu)
  arms="cpt it cpt_then_it joint aligned"
  tokens=${TOKENS:-4000000} # of joint training; the other arms get their part of them
  steps="--max_length 2048 --batch_tokens 16384 --micro_batch_tokens 16384 --lr 1e-4"
  tasks=fineval asked="--style direct --limit ${LIMIT:-500} --slots 512"
  exercises="arithmetic problems reports" # which are sampled and, where some are held out, asked
  prompts=2000 samples=8 longest=256 slots=512 asks=1000
  dpo="--max_length 2048 --batch_tokens 8192 --micro_batch_tokens 8192 --lr 5e-6"
  ;;
cpu)
  arms="joint aligned"
  tokens=${TOKENS:-120000}
  steps="--max_length 512 --batch_tokens 2048 --micro_batch_tokens 2048 --lr 5e-5"
  # Short questions with choices: their log-probs take one forward pass each
  tasks=fpb,fiqa_sa,fomc,german,cra_ccfraud,travelinsurance,mmlu_finance,arc,openbookqa,piqa
  asked="--mode loglikelihood --limit ${LIMIT:-50}"
  exercises="arithmetic"
  prompts=300 samples=8 longest=24 slots=64 asks=300
  dpo="--max_length 512 --batch_tokens 512 --micro_batch_tokens 512 --lr 1e-5"
  ;;
*) stop "SIZE: $SIZE is not gpu or cpu" ;;
esac
half=$((tokens / 2)) dtype="--dtype bfloat16"
prompts=${PROMPTS:-$prompts} asks=${ASKS:-$asks}
mkdir -p "$out/data" "$out/curated"

once() { # once NAME RESULT COMMAND...: unless RESULT, a file or a mark, is there; seconds in times.jsonl
  local name=$1 result=$2 began
  shift 2
  [ -e "$result" ] && return
  printf '\n== %s\n' "$name"
  began=$(date +%s.%N)
  "$@"
  [ -e "$result" ] || touch "$result"
  awk -v name="$name" -v began="$began" -v ended="$(date +%s.%N)" \
    'BEGIN { printf "{\"stage\": \"%s\", \"seconds\": %.2f}\n", name, ended - began }' >>"$out/times.jsonl"
}

# The questions of the evaluation, then rows that do not hold them --------------------------------

found=""
for task in $(python -c 'import tasks; print(*tasks.FINEVAL)'); do
  for folder in "$data/$task" "$data/cra_$task" "$data/${task}_fin" "$data/${task%_finance}"; do
    if [ -d "$folder" ]; then
      once "questions of $task" "$out/data/$task.jsonl" python evaluate.py prepare "$task" "$folder" "$out/data"
      found="$found $task"
      break
    fi
  done
done
[ -n "$found" ] || stop "DATA: $data has no folder of a task (python evaluate.py --list names them)"
once "rows" "$out/rows/made" python recipes/smollm2_rows.py "$data" "$out/rows"

files_of() { # files_of KIND: those of DATA and those made of its sets, with commas
  local file files=("$data/$1" "$data/$1.jsonl" "$out/rows/$1.jsonl") task found=""
  [ "$1" = finance_text ] && files+=("$data/cpt_bundle/cpt_train.jsonl")
  if [ "$1" = finance_chat ]; then
    for task in fpb fiqa_sa fomc ner edtsum; do files+=("$out/data/${task}_train.jsonl"); done
  fi
  for file in "${files[@]}"; do [ -e "$file" ] && found="$found,$file"; done
  echo "${found#,}"
}

curate() { # curate KIND FLAGS...: OUT/curated/KIND.jsonl; FLAGS are those of dedup
  local kind=$1 files
  shift
  files=$(files_of "$kind")
  [ -n "$files" ] || stop "DATA: $data has no $kind: a folder $kind or a file $kind.jsonl of rows," \
    "or one of the sets that the head of recipes/smollm2_study.sh names"
  once "$kind: converted" "$out/curated/${kind}_converted.jsonl" python curate.py convert \
    --data "$files" --out "$out/curated/${kind}_converted.jsonl" --to "${kind#*_}"
  once "$kind: copies" "$out/curated/${kind}_once.jsonl" python curate.py dedup \
    --data "$out/curated/${kind}_converted.jsonl" --out "$out/curated/${kind}_once.jsonl" "$@"
  once "$kind: contamination" "$out/curated/$kind.jsonl" python curate.py decontaminate \
    --data "$out/curated/${kind}_once.jsonl" --out "$out/curated/$kind.jsonl" --eval_data "$out/data"
}

curate finance_text
# Exercises and rows of one task share most of their words: only exact copies are dropped
for kind in general_text finance_chat general_chat; do curate "$kind" --no-near; done

sampled="" # what solutions are sampled of
for name in $exercises; do
  if [ -f "$out/rows/prompts_$name.jsonl" ]; then sampled="$sampled $out/rows/prompts_$name.jsonl"; fi
done
[ -n "$sampled" ] || stop "DATA: $data has no exercises for the alignment: gsm8k, dm_mathematics or finqa_subset"
# shellcheck disable=SC2086  # words
[ -e "$out/prompts.jsonl" ] || cat $sampled | awk -v n="$prompts" 'NR <= n' >"$out/rows/prompts.jsonl"
once "exercises: contamination" "$out/prompts.jsonl" python curate.py decontaminate \
  --data "$out/rows/prompts.jsonl" --out "$out/prompts.jsonl" --eval_data "$out/data"

# Mixtures: the paper's shares ---------------------------------------------------------------------

source_of() { # source_of KIND SHARE: general rows are few beside what a user may bring, so they repeat
  printf '{"name": "%s", "kind": "%s", "files": ["%s"], "share": %s, "repeats": 8}' \
    "$1" "${1#*_}" "$(realpath "$out")/curated/$1.jsonl" "$2"
}

mixture() { # mixture NAME TOKENS SOURCE...: OUT/NAME.json
  local name=$1 total=$2 sources
  shift 2
  sources=$(printf ',\n  %s' "$@")
  printf '{"unit": "tokens", "groups": [{"total": %d, "sources": [%s\n]}]}\n' "$total" "${sources#,}" >"$out/$name.json"
}

mixture cpt "$half" "$(source_of finance_text 0.5)" "$(source_of general_text 0.5)"
mixture it "$half" "$(source_of finance_chat 0.2)" "$(source_of general_chat 0.8)"
mixture joint "$tokens" "$(source_of finance_text 0.25)" "$(source_of general_text 0.25)" \
  "$(source_of finance_chat 0.1)" "$(source_of general_chat 0.4)"

# Arms ---------------------------------------------------------------------------------------------

train() { # train ARM FROM MIXTURE
  # shellcheck disable=SC2086  # words
  once "seed $seed: $1" "$here/$1/model.safetensors" python train_cpt.py --init_from "$2" \
    --out_dir "$here/$1" --mixture "$out/$3.json" --heldout_text "" --heldout_chat "" --epochs 1 \
    --token_cache "$out/tokens" --seed "$seed" $steps $dtype
}

align() { # align ARM FROM
  local reward="$here/reward"
  # shellcheck disable=SC2086
  once "seed $seed: solutions" "$reward/sampled" python reward.py sample --init_from "$2" \
    --out_dir "$reward" --prompts "$out/prompts.jsonl" --samples "$samples" \
    --max_new_tokens "$longest" --slots "$slots" --seed "$seed" $dtype
  if [ -n "${JUDGE_URL:-}" ]; then
    once "seed $seed: verdicts" "$reward/judged" python reward.py judge --out_dir "$reward" \
      --base_url "$JUDGE_URL" --model "${JUDGE_MODEL:?}"
  else
    once "seed $seed: verdicts" "$reward/judged" python reward.py judge --out_dir "$reward" --judge exact
  fi
  once "seed $seed: pairs" "$reward/pairs.jsonl" python reward.py pairs --out_dir "$reward" --seed "$seed"
  # shellcheck disable=SC2086
  once "seed $seed: $1" "$here/$1/model.safetensors" python train_dpo.py --init_from "$2" \
    --pairs "$reward/pairs.jsonl" --out_dir "$here/$1" --epochs 1 --token_cache "$out/tokens" \
    --seed "$seed" $dpo $dtype
}

evaluate() { # evaluate ARM CHECKPOINT FOLDER: FOLDER/eval_ARM, FOLDER/held_ARM
  local name=$1 folder=$3
  # shellcheck disable=SC2086
  once "evaluation of $3, $name" "$folder/eval_$name/done" python evaluate.py --init_from "$2" \
    --tasks "$tasks" --data "$out/data" --out_dir "$folder/eval_$name" $asked $dtype
  if [ -n "${JUDGE_URL:-}" ]; then
    once "judged: $3, $name" "$folder/eval_$name/judged" python evaluate.py judge \
      --out_dir "$folder/eval_$name" --base_url "$JUDGE_URL" --model "${JUDGE_MODEL:?}"
  fi
  for set in $exercises; do
    [ -f "$out/rows/held_$set.jsonl" ] || continue
    head -n "$asks" "$out/rows/held_$set.jsonl" >"$out/held_$set.jsonl"
    # shellcheck disable=SC2086
    once "$set of $3, $name" "$folder/held_$name/$set/done" python reward.py sample --init_from "$2" \
      --out_dir "$folder/held_$name/$set" --prompts "$out/held_$set.jsonl" --samples 1 \
      --temperature 0 --max_new_tokens "$longest" --slots "$slots" $dtype
  done
}

evaluate base "$model" "$out"
for seed in $seeds; do
  here="$out/seed$seed"
  mkdir -p "$here"
  boards=(base="$out/eval_base")
  for arm in $arms; do
    case $arm in
    cpt | it | joint) train "$arm" "$model" "$arm" ;;
    cpt_then_it) train "$arm" "$here/cpt" it ;;
    aligned) align "$arm" "$here/joint" ;;
    esac
    evaluate "$arm" "$here/$arm" "$here"
    boards+=("$arm=$here/eval_$arm")
  done
  printf '\n== seed %s: comparisons\n' "$seed"
  for arm in $arms; do python evaluate.py compare "$out/eval_base" "$here/eval_$arm"; done
  python evaluate.py compare "$here/eval_joint" "$here/eval_aligned"
  python evaluate.py report "${boards[@]}" --out_dir "$here/board"
done
python benchmarks/smollm2_study.py --out_dir "$out"
