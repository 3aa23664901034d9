#!/usr/bin/env bash
# The paper's recipe (arXiv:2501.04961, Table G.1): Llama-3-8B-Instruct to a finance model, on 8 or
# 16 GPUs. It has not been run yet; what it needs is printed first, from config.json alone.
#
#   PLAN=1 recipes/llama3_8b.sh MODEL DATA [OUT]                          memory and hours, no GPU
#   recipes/llama3_8b.sh MODEL DATA [OUT]                                 one node of 8 GPUs
#   NNODES=2 NODE_RANK=0 MASTER=10.0.0.1 recipes/llama3_8b.sh ...         two nodes: on the first
#   NNODES=2 NODE_RANK=1 MASTER=10.0.0.1 recipes/llama3_8b.sh ...         and on the second
#
# MODEL  the checkpoint folder of Llama-3-8B-Instruct (for PLAN=1 its config.json suffices)
# DATA   a folder of yours: the files that recipes/group1.json and group2.json name (curate.py),
#        dev_text.jsonl, dev_chat.jsonl (held out), exam.jsonl (prompts with answers; paper: of the
#        CFA), fineval/TASK.jsonl (evaluate.py prepare)
# OUT    where everything goes, default out/llama3_8b; several nodes share MODEL, DATA and OUT
#
# JUDGE_URL, JUDGE_MODEL: an OpenAI-compatible endpoint (paper: GPT-4o), key in OPENAI_API_KEY.
# GPUS: of a node, default 8. DPO_EPOCHS: default 1. A stopped run goes on with the same command.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 2 ] || { sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 2; }
model=$(realpath "$1") DATA=$(realpath -m "$2") out=${3:-out/llama3_8b}
export DATA
nodes=${NNODES:-1} node=${NODE_RANK:-0} gpus=${GPUS:-8}
ranks=$((nodes * gpus))
source env.sh
make_env -r requirements.txt matplotlib==3.11.2

heldout() { [ -f "$DATA/$1" ] && echo "$DATA/$1" || true; } # heldout FILE: "" if it is not there

# The paper's: learning rates, warmup, tokens a step, weight decay 0.1 (and beta2 0.95, our default),
# about one pass, 3.84B and 1.66B tokens (the mixtures). Its released code's: the linear schedule,
# beta 0.1, nll_coef 1. Ours: rows of 8,192 tokens (paper: 8,000, of which 16 are a step, too), a
# schedule that ends with the run (released code: after three passes), how the mixtures divide, 8
# samples a prompt, a prompt with both replies packed in rows of 2,048 (released code: prompt and
# one reply up to 2,048, 16 pairs a step).
both=(--max_length 8192 --batch_tokens 131072 --micro_batch_tokens $((131072 / ranks))
  --lr 5e-6 --schedule linear --weight_decay 0.1 --epochs 1 --token_cache "$out/tokens"
  --heldout_text "$(heldout dev_text.jsonl)" --heldout_chat "$(heldout dev_chat.jsonl)"
  --eval_every 500 --save_every 500)
# Two rows a GPU without recomputation take 68 of 80 GB; leave this out on GPUs of 141 GB
[ "$ranks" -ge 16 ] || both+=(--recompute)
group1=(--mixture recipes/group1.json --warmup 0.1 "${both[@]}")
group2=(--mixture recipes/group2.json --warmup 0.5 "${both[@]}")
# The paper stops after 24.58M tokens, 750 steps: see the plan, and set DPO_EPOCHS for as many
dpo=(--pairs "$out/reward/pairs.jsonl" --max_length 2048 --batch_tokens 32768
  --micro_batch_tokens $((32768 / ranks)) --lr 5e-7 --warmup 0.1 --schedule linear
  --weight_decay 0.1 --beta 0.1 --nll_coef 1 --epochs "${DPO_EPOCHS:-1}"
  --token_cache "$out/tokens")

plan() { # plan NAME STAGE FLAGS...: every stage has the shape of MODEL
  echo "== $1"
  python "train_$2.py" --init_from "$model" --dry_run "$ranks" "${@:3}"
}
if [ "$node" = 0 ]; then
  plan "group 1" cpt "${group1[@]}"
  plan "group 2" cpt "${group2[@]}"
  plan "DPO" dpo "${dpo[@]}"
fi
[ -z "${PLAN:-}" ] || exit 0

everywhere() { # everywhere SCRIPT FLAGS...: on all GPUs of all nodes
  if [ "$nodes" = 1 ]; then
    torchrun --standalone --nproc_per_node "$gpus" "$@"
  else
    # A node waits for the others while the first one plans, tokenises or judges
    torchrun --nnodes "$nodes" --node_rank "$node" --rdzv_conf timeout=86400 --master_addr "${MASTER:?}" \
      --master_port "${PORT:-29500}" --nproc_per_node "$gpus" "$@"
  fi
}

everywhere train_cpt.py --init_from "$model" --out_dir "$out/group1" "${group1[@]}"
everywhere train_cpt.py --init_from "$out/group1" --out_dir "$out/cpt" "${group2[@]}"

# A prompt of 1,024 tokens and two solutions of 512 just fill a row of DPO
everywhere reward.py sample --init_from "$out/cpt" --prompts "$DATA/exam.jsonl" \
  --out_dir "$out/reward" --samples 8 --max_new_tokens 512
if [ "$node" = 0 ]; then # one process asks the judge; the other nodes wait for its pairs
  python reward.py judge --out_dir "$out/reward" --base_url "${JUDGE_URL:?}" \
    --model "${JUDGE_MODEL:?}"
  python reward.py pairs --out_dir "$out/reward"
  touch "$out/reward/paired"
  plan "DPO, its pairs counted" dpo "${dpo[@]}"
fi
until [ -e "$out/reward/paired" ]; do sleep 10; done
everywhere train_dpo.py --init_from "$out/cpt" --out_dir "$out/aligned" "${dpo[@]}"

[ "$node" = 0 ] || exit 0 # evaluation: every GPU of this node holds the whole model
boards=()
for pair in base="$model" cpt="$out/cpt" aligned="$out/aligned"; do
  name=${pair%%=*}
  torchrun --standalone --nproc_per_node "$gpus" evaluate.py --init_from "${pair#*=}" \
    --tasks fineval --data "$DATA/fineval" --out_dir "$out/eval_$name"
  python evaluate.py judge --out_dir "$out/eval_$name" --base_url "${JUDGE_URL:?}" \
    --model "${JUDGE_MODEL:?}"
  boards+=("$name=$out/eval_$name")
done
python evaluate.py report "${boards[@]}" --out_dir "$out/board"
