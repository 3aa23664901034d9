#!/usr/bin/env bash
# Trains the base model of the sample world, sample/base: a random tiny Llama that reads the general
# part (people, everyday calculations, answer formats) and nothing of the finance part.
#
#     ./sample/make_base.sh            about 10 minutes on a quiet CPU core; makes .venv if needed
#
# The shipped weights were made by exactly this. On another machine rounding differs, the scores
# hardly do: about 99% on general and 100% on instruction following, 0 to 3% elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
source env.sh
make_env -r requirements.txt matplotlib==3.11.2
export OMP_NUM_THREADS=1

python sample/world.py --out sample/data --seed 0
python sample/new_base.py --data sample/data --out out/new_base --seed 0
python train_cpt.py --init_from out/new_base --out_dir out/base \
    --text sample/data/base_text.jsonl --chat sample/data/base_chat.jsonl --mix all \
    --heldout_text "" --heldout_chat "" \
    --epochs 15 --batch_tokens 2048 --micro_batch_tokens 2048 --lr 3e-3 --seed 0

mkdir -p sample/base
for name in config.json generation_config.json model.safetensors special_tokens_map.json \
    tokenizer.json tokenizer_config.json; do
    cp "out/base/$name" sample/base/
done
ls -l sample/base
