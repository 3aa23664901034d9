#!/usr/bin/env bash
# What in alignment helps? The sample world, the same policy aligned on different pairs, many seeds.
#
#   recipes/alignment.sh [SEEDS] [OUT]         e.g. recipes/alignment.sh "0 1 2 3 4" out/alignment
#
#   none          the tuned policy                        both         FAP and SCP
#   fap, scp      pairs by outcome, by process            sft          plain SFT on the chosen side of both
#   scp_self      corrections in the policy's own words   both_self    FAP and these
#   trained       both, of the verdicts of the small trained judge in JUDGE (sample/make_judge.sh), if any
#
# A seed stands for the order of the tuning data, the samples and the order of the pairs. Six minutes a
# seed on a quiet CPU core; what is done is not done again. Ends with a table over the seeds and
# OUT/alignment.json. Time of each stage: OUT/seed*/times.jsonl.
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=${1:-0 1 2 3 4} out=${2:-out/alignment}
source env.sh
make_env -r requirements.txt matplotlib==3.11.2
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
start_judge

once() { # once NAME RESULT COMMAND...: unless RESULT is there; its seconds go to times.jsonl
  local name=$1 result=$2 began
  shift 2
  [ -e "$result" ] && return
  began=$(date +%s.%N)
  "$@"
  awk -v name="$name" -v began="$began" -v ended="$(date +%s.%N)" \
    'BEGIN { printf "{\"stage\": \"%s\", \"seconds\": %.2f}\n", name, ended - began }' >>"$here/times.jsonl"
}

evaluate() { # evaluate ARM CHECKPOINT
  once "evaluate" "$here/eval_$1/results.json" \
    python evaluate.py --init_from "$2" --out_dir "$here/eval_$1" --tasks reasoning
}

align() { # align ARM PAIRS
  once "dpo $1" "$here/$1/model.safetensors" python train_dpo.py --init_from "$here/cpt_it" \
    --pairs "$here/reward/$2" --out_dir "$here/$1" --beta 0.03 --seed "$seed" $steps
  evaluate "$1" "$here/$1"
}

pairs() { # pairs FILE FLAGS...
  once "pairs" "$here/reward/$1" python reward.py pairs --out_dir "$here/reward" --pairs "$@" --seed "$seed"
}

steps="--epochs 1 --lr 1.5e-4 --batch_tokens 2048 --micro_batch_tokens 2048" # the same for all
for seed in $seeds; do
  here="$out/seed$seed" reward="$out/seed$seed/reward"
  mkdir -p "$reward"
  once "cpt_it" "$here/cpt_it/model.safetensors" python train_cpt.py --init_from sample/base \
    --out_dir "$here/cpt_it" --epochs 3 --seed "$seed"
  evaluate none "$here/cpt_it"
  policy="--init_from $here/cpt_it --out_dir $reward --max_new_tokens 96 --seed $seed"
  once "sample" "$reward/sampled" python reward.py sample $policy --samples 6
  once "judge" "$reward/judged" python reward.py judge --out_dir "$reward" --base_url "$judge_url"
  once "correct" "$reward/corrected" python reward.py correct $policy --samples 8
  touch "$reward"/{sampled,judged,corrected}

  pairs fap.jsonl --scp_per_prompt 0
  pairs scp.jsonl --fap_per_prompt 0
  pairs both.jsonl
  pairs scp_self.jsonl --fap_per_prompt 0 --corrections self
  pairs both_self.jsonl --corrections self
  for arm in fap scp both scp_self both_self; do align $arm $arm.jsonl; done
  once "sft" "$here/sft/model.safetensors" python train_sft.py --init_from "$here/cpt_it" \
    --pairs "$reward/both.jsonl" --out_dir "$here/sft" --seed "$seed" $steps
  evaluate sft "$here/sft"

  if [ -n "${JUDGE:-}" ]; then
    once "judge, trained" "$reward/judged_by_trained" python reward.py judge --out_dir "$reward" \
      --judge local --judge_from "$JUDGE" --verdicts by_trained.jsonl --max_tokens 256
    touch "$reward/judged_by_trained"
    pairs trained.jsonl --verdicts by_trained.jsonl
    align trained trained.jsonl
  fi
done
python benchmarks/alignment.py --out_dir "$out"
