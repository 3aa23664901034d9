#!/usr/bin/env bash
# Preference distillation in rounds: what is aligned once is sampled, judged and aligned again.
#
#   recipes/rounds.sh [POLICY] [ROUNDS] [OUT]
#
# POLICY  the checkpoint to begin with, default out/demo/cpt_it (of ./run.sh)
# ROUNDS  how many, default 2
# OUT     default out/rounds: OUT/round1/{reward,aligned,eval}, OUT/round2/...
#
# On the sample world, a minute or two a round. For a model of yours take another --prompts, judge and
# learning rate; the loop stays. Every round has new samples (--seed), the old prompts, and the policy
# of the round before both as what is trained and as DPO's reference. A stopped run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
policy=${1:-out/demo/cpt_it} rounds=${2:-2} out=${3:-out/rounds}
source env.sh
make_env -r requirements.txt matplotlib==3.11.2
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
start_judge

evaluate() { # evaluate CHECKPOINT FOLDER
  [ "$2/results.json" -nt "$1/model.safetensors" ] ||
    python evaluate.py --init_from "$1" --out_dir "$2"
}

evaluate "$policy" "$out/eval_start"
before="$out/eval_start"
for round in $(seq "$rounds"); do
  here="$out/round$round"
  python reward.py sample --init_from "$policy" --out_dir "$here/reward" --seed "$round" \
    --samples 6 --max_new_tokens 96
  python reward.py judge --out_dir "$here/reward" --base_url "$judge_url"
  python reward.py pairs --out_dir "$here/reward"
  python train_dpo.py --init_from "$policy" --pairs "$here/reward/pairs.jsonl" \
    --out_dir "$here/aligned" --beta 0.03 --lr 1.5e-4 --batch_tokens 2048 --micro_batch_tokens 2048
  policy="$here/aligned"
  evaluate "$policy" "$here/eval"
  python evaluate.py compare "$before" "$here/eval" # what this round added
  before="$here/eval"
done
python evaluate.py compare "$out/eval_start" "$before" # and all of them together
