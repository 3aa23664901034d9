#!/usr/bin/env bash
# FinTrain from files of yours: text and instructions -> clean rows -> a mixture -> joint training.
#
#   recipes/fintrain.sh TEXT CHAT EVAL OUT [CHECKPOINT]
#
# TEXT        files or folders with commas: json lines, parquet, plain text; foreign shapes are converted
# CHAT        the same of instructions, whatever tool they were made for
# EVAL        rows of the tasks (python evaluate.py prepare NAME SOURCE EVAL): what must not be trained on
# OUT         gets the rows of every step, what each left out and why, two pages of statistics
#             (stats_text.stats.html, stats_chat.stats.html), mixture.json and the token files
# CHECKPOINT  a Hugging Face folder: its tokenizer counts the tokens, and it is trained on the mixture,
#             half text and half instructions by tokens, into OUT/cpt; FLAGS="--lr 5e-6 --max_length 8192"
#             and the like go to train_cpt.py. Without it the rows are all
#
# SELECT="--sites recipes/finance_sites.txt --keywords recipes/finance_keywords.txt" keeps only texts
# of finance. With JUDGE_URL (an OpenAI-compatible endpoint, its model in JUDGE_MODEL) texts are also
# scored for quality, 4 of 5 points are kept (the paper's mark), and exercises are taken out of them:
# OUT/exercises.jsonl, prompts for `reward.py sample`. What is done is not done again; a stopped run
# goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 4 ] || { sed -n '2,21s/^# \{0,1\}//p' "$0"; exit 2; }
text=$1 chat=$2 eval=$3 out=$4 checkpoint=${5:-}
source env.sh
make_env -r requirements.txt matplotlib==3.11.2 pyarrow==26.0.1
mkdir -p "$out"

step() { # step NAME FROM WHAT FLAGS...: OUT/NAME.jsonl from FROM by `curate.py WHAT`
  local name=$1 from=$2 what=$3
  shift 3
  printf '\n== %s\n' "$name"
  python curate.py "$what" --data "$from" --out "$out/$name.jsonl" "$@"
}

# Texts: those of finance, in English; near copies are dropped, too
step text_converted "$text" convert --to text
# shellcheck disable=SC2086  # SELECT and FLAGS are words
step text_selected "$out/text_converted.jsonl" select --language en --min_words 50 ${SELECT:-}
step text_once "$out/text_selected.jsonl" dedup
good=text_once
if [ -n "${JUDGE_URL:-}" ]; then
  step exercises "$out/text_once.jsonl" exercises --base_url "$JUDGE_URL" --model "${JUDGE_MODEL:?}"
  step text_scored "$out/text_once.jsonl" score --base_url "$JUDGE_URL" --model "$JUDGE_MODEL"
  good=text_scored
fi
step text "$out/$good.jsonl" decontaminate --eval_data "$eval"
step stats_text "$out/text.jsonl" stats --tokenizer "$checkpoint"

# Instructions: rows of one task share most of their words, so only exact copies are dropped
step chat_converted "$chat" convert --to chat
step chat_once "$out/chat_converted.jsonl" dedup --no-near
step chat "$out/chat_once.jsonl" decontaminate --eval_data "$eval"
step stats_chat "$out/chat.jsonl" stats --tokenizer "$checkpoint"

cat >"$out/mixture.json" <<JSON
{"unit": "tokens", "groups": [{"sources": [
  {"name": "text", "kind": "text", "files": ["$out/text.jsonl"], "share": 0.5, "repeats": 1},
  {"name": "chat", "kind": "chat", "files": ["$out/chat.jsonl"], "share": 0.5, "repeats": 4}
]}]}
JSON
if [ -n "$checkpoint" ]; then
  printf '\n== joint training\n'
  # shellcheck disable=SC2086
  python train_cpt.py --init_from "$checkpoint" --out_dir "$out/cpt" --mixture "$out/mixture.json" \
    --token_cache "$out/tokens" --heldout_text "" --heldout_chat "" ${FLAGS:-}
fi
