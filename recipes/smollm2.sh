#!/usr/bin/env bash
# The recipe on a real model and real text, small enough for a CPU: SmolLM2-135M-Instruct.
#
#   recipes/smollm2.sh MODEL DATA [OUT]
#
# MODEL  the checkpoint folder of HuggingFaceTB/SmolLM2-135M-Instruct
# DATA   a folder of yours:  cpt.jsonl    {"text"} rows of finance text
#                            fpb/         Sentences_50Agree.txt of the Financial PhraseBank
#                            fiqa_sa/     FiQA 2018: FinLoRA's 235 test rows, task1_*_train.json
#                            fomc/        gtfintechlab/fomc-hawkish-dovish: the split-combine files
# OUT    where everything goes, default out/smollm2
#
# About 350,000 training tokens. One in eight to four training rows of the three tasks is used for
# tuning; other rows of the PhraseBank are the prompts of the alignment. Without JUDGE_URL (an
# OpenAI-compatible endpoint, its model name in JUDGE_MODEL) the answers are judged by exact match,
# which suffices for labels and gives pairs by outcome (FAP) only. Stopped runs go on.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 2; }
model=$(realpath "$1") data=$(realpath "$2") out=${3:-out/smollm2}
source env.sh
make_env -r requirements.txt matplotlib==3.11.2
tasks=fpb,fiqa_sa,fomc
dtype=bfloat16

for task in ${tasks//,/ }; do
  [ -f "$out/data/$task.jsonl" ] || python evaluate.py prepare "$task" "$data/$task" "$out/data"
done

every() { awk -v n="$2" -v k="$3" 'NR % n == k' "$out/data/$1_train.jsonl"; } # every TASK N OFFSET
{ every fpb 8 0; every fiqa_sa 4 0; every fomc 6 0; } >"$out/data/sft.jsonl"
every fpb 8 1 | python -c '
import json, sys
for i, line in enumerate(sys.stdin):
    question, answer = (m["content"] for m in json.loads(line)["messages"])
    row = {"id": f"fpb{i}", "source": "fpb", "prompt": question, "answer": answer}
    print(json.dumps(row))' >"$out/data/prompts.jsonl"

evaluate() { # evaluate NAME CHECKPOINT
  [ "$out/eval_$1/results.json" -nt "$2/model.safetensors" ] ||
    python evaluate.py --init_from "$2" --tasks $tasks --data "$out/data" \
      --mode loglikelihood --dtype $dtype --out_dir "$out/eval_$1"
}

evaluate base "$model"

python train_cpt.py --init_from "$model" --out_dir "$out/joint" \
  --text "$data/cpt.jsonl" --chat "$out/data/sft.jsonl" --heldout_text "" --heldout_chat "" \
  --max_length 512 --batch_tokens 2048 --micro_batch_tokens 2048 --epochs 1 \
  --lr 2e-5 --dtype $dtype --save_every 40
# A label is two trained tokens, a text 512: of the joint loss the answers are 2%. So they get a pass
# of their own; with answers as long as the paper's this stage is not needed.
python train_sft.py --init_from "$out/joint" --out_dir "$out/cpt_it" \
  --chat "$out/data/sft.jsonl" --heldout_chat "" --max_length 512 --batch_tokens 2048 \
  --micro_batch_tokens 2048 --epochs 1 --lr 2e-5 --dtype $dtype --save_every 40
evaluate cpt_it "$out/cpt_it"

python reward.py sample --init_from "$out/cpt_it" --prompts "$out/data/prompts.jsonl" \
  --out_dir "$out/reward" --samples 6 --max_new_tokens 8 --dtype $dtype
if [ -n "${JUDGE_URL:-}" ]; then
  python reward.py judge --out_dir "$out/reward" --base_url "$JUDGE_URL" --model "${JUDGE_MODEL:?}"
else
  python reward.py judge --out_dir "$out/reward" --judge exact
fi
python reward.py pairs --out_dir "$out/reward" --fap_per_prompt 1

python train_dpo.py --init_from "$out/cpt_it" --pairs "$out/reward/pairs.jsonl" \
  --out_dir "$out/aligned" --max_length 512 --batch_tokens 2048 --micro_batch_tokens 2048 \
  --epochs 1 --lr 2e-6 --dtype $dtype
evaluate aligned "$out/aligned"

for after in cpt_it aligned; do
  python evaluate.py compare "$out/eval_base" "$out/eval_$after"
done
