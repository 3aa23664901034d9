#!/usr/bin/env bash
# Trains a judge of the sample world, out/judge: a Llama of 0.8M parameters that learns what the exact
# judge (judge_server.py) says of the tuned model's solutions of data/exam_judge.jsonl, 2,000 exercises
# that nothing else uses.
#
#     ./sample/make_judge.sh     5 minutes of one CPU core behind ./run.sh, whose tuned model it takes
#                                (without out/demo/cpt_it it trains that first); makes .venv if needed
#
# Two stages: drills in comparing numbers, then the verdicts. The samples are hotter than ./run.sh's, so
# that more of them are wrong, and in more ways. A run that was stopped goes on. How good it is:
#
#     python reward.py export --out_dir out/demo/reward --format processbench
#     python reward.py eval --cases out/demo/reward/processbench.jsonl --judge local \
#         --judge_from out/judge
set -euo pipefail
cd "$(dirname "$0")/.."
source env.sh
make_env -r requirements.txt matplotlib==3.11.2
export OMP_NUM_THREADS=1
policy=out/demo/cpt_it work=out/judged

python train_cpt.py --init_from sample/base --out_dir "$policy" --epochs 3 # as ./run.sh does
python reward.py sample --init_from "$policy" --prompts sample/data/exam_judge.jsonl \
    --out_dir "$work" --samples 4 --temperature 1.2 --max_new_tokens 96

start_judge
python reward.py judge --out_dir "$work" --base_url "$judge_url"
python reward.py export --out_dir "$work" --format chats

python sample/new_judge.py --out out/new_judge
python train_sft.py --init_from out/new_judge --chat out/new_judge/drills.jsonl \
    --heldout_chat "" --out_dir out/drilled_judge --max_length 512 --epochs 1 --lr 3e-3
python train_sft.py --init_from out/drilled_judge --chat "$work/chats.jsonl" \
    --heldout_chat "" --out_dir out/judge --max_length 512 --epochs 1.5 --lr 2e-3
