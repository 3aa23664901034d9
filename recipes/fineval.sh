#!/usr/bin/env bash
# FinEval of one or more checkpoints, and one page that compares them.
#
#   recipes/fineval.sh DATA OUT NAME=CHECKPOINT [NAME=CHECKPOINT ...]
#
# DATA   rows of the tasks, made by `python evaluate.py prepare NAME SOURCE DATA`; tasks without data
#        are named, and left out of every mean
# OUT    gets a directory per checkpoint and OUT/board/board.html
#
# FLAGS="--limit 200" and the like go to every evaluation. With JUDGE_URL (an OpenAI-compatible
# endpoint, its model name in JUDGE_MODEL) MT-Bench, TAT-QA and FinanceBench are judged. The first
# checkpoint is the one that the others are compared with. A stopped run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 3 ] || { sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2; }
data=$(realpath "$1") out=$2
shift 2
source env.sh
make_env -r requirements.txt matplotlib==3.11.2

boards=()
for pair in "$@"; do
  name=${pair%%=*}
  # shellcheck disable=SC2086  # FLAGS are words
  python evaluate.py --init_from "${pair#*=}" --tasks fineval --data "$data" \
    --out_dir "$out/$name" ${FLAGS:-}
  if [ -n "${JUDGE_URL:-}" ]; then
    python evaluate.py judge --out_dir "$out/$name" --base_url "$JUDGE_URL" \
      --model "${JUDGE_MODEL:?}"
  fi
  boards+=("$name=$out/$name")
done
python evaluate.py report "${boards[@]}" --out_dir "$out/board"
