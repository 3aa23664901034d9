#!/usr/bin/env bash
# The whole recipe on the sample world, from a bare machine: base -> CPT + IT -> sample -> judge ->
# pairs -> DPO -> evaluation -> report. See ./run.sh --help.
set -euo pipefail
cd "$(dirname "$0")"

trained=""
while [ $# -gt 0 ]; do
  case "$1 ${2:-}" in
    "--fresh "*) rm -rf out/demo out/judge out/judged out/drilled_judge out/new_judge && shift ;;
    "--judge trained") trained=yes && shift 2 ;;
    *)
      cat <<'HELP'
usage: ./run.sh [--fresh] [--judge trained]

Makes .venv (Python >= 3.11, once), then turns sample/base, a tiny Llama that knows nothing of
finance, into a finance model, and ends with out/demo/report.html and out/demo/report.json.

  stage                                               result
  1 evaluate the base                                 out/demo/eval_base
  2 continual pretraining + instructions, jointly     out/demo/cpt_it
  3 sample its solutions of exam exercises            out/demo/reward/trajectories.jsonl
  4 judge them (a server on this machine)             out/demo/reward/verdicts.jsonl
  5 preference pairs, by outcome and by first error   out/demo/reward/pairs.jsonl
  6 DPO + NLL on the pairs                            out/demo/aligned
  7 control: plain SFT on the chosen side             out/demo/sft_control
  8 evaluate all of them, report                      out/demo/report.html

About 10 minutes on 2 CPU cores, installation included. What is done is not done again: a second run
only renews the report, a run that was stopped goes on. --fresh deletes out/demo and the trained judge first.
--judge trained: stages 4 to 8 with a judge that is itself a small Llama, trained for it (6 minutes more,
sample/make_judge.sh) and measured by reward.py eval; results in out/demo/by_trained.
PYTHON=/path/to/python3.11 chooses the interpreter. Every stage is a script with its own --help.
HELP
      case "$1" in -h | --help) exit 0 ;; *) echo "error: unknown argument $*" >&2 && exit 2 ;; esac
      ;;
  esac
done

source env.sh
make_env -r requirements.txt matplotlib==3.11.2
# One thread: on so small a model two wait for each other more than they work, and on a machine that
# does other things as well they were five times slower than one.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
demo=out/demo
mkdir -p "$demo"
began=$SECONDS

stage() { printf '\n== %s  (%d s)\n' "$*" $((SECONDS - began)); }

evaluate() { # evaluate NAME CHECKPOINT: all capabilities, once per checkpoint
  local results="$demo/eval_$1/results.json"
  if [ "$results" -nt "$2/model.safetensors" ]; then
    echo "$results is there"
  else
    python evaluate.py --init_from "$2" --out_dir "$demo/eval_$1"
  fi
}

stage "1 of 8: what the base can do"
evaluate base sample/base

stage "2 of 8: continual pretraining joined with instruction tuning"
policy="$demo/cpt_it"
python train_cpt.py --init_from sample/base --out_dir "$policy" --epochs 3
evaluate cpt_it "$policy"

reward="$demo/reward"
stage "3 of 8: its own solutions of the exam exercises"
python reward.py sample --init_from "$policy" --out_dir "$reward" --samples 6 --max_new_tokens 96

stage "4 of 8: the judge reads them"
start_judge
python reward.py judge --out_dir "$reward" --base_url "$judge_url"
if [ -n "$trained" ]; then
  ./sample/make_judge.sh
  python reward.py export --out_dir "$reward" --format processbench # what the exact judge says
  demo=out/demo/by_trained reward=out/demo/by_trained/reward
  python reward.py eval --cases out/demo/reward/processbench.jsonl --out_dir "$demo/judge_eval" \
    --judge local --judge_from out/judge --max_tokens 256
  mkdir -p "$reward"
  cp out/demo/reward/trajectories.jsonl "$reward"
  python reward.py judge --out_dir "$reward" --judge local --judge_from out/judge --max_tokens 256
fi

stage "5 of 8: preference pairs"
python reward.py pairs --out_dir "$reward"

stage "6 of 8: preference alignment (DPO + NLL)"
steps="--epochs 1 --lr 1.5e-4 --batch_tokens 2048 --micro_batch_tokens 2048" # the same for both
python train_dpo.py --init_from "$policy" --pairs "$reward/pairs.jsonl" \
  --out_dir "$demo/aligned" --beta 0.03 $steps

stage "7 of 8: the control, plain SFT on the same chosen texts"
python train_sft.py --init_from "$policy" --pairs "$reward/pairs.jsonl" \
  --out_dir "$demo/sft_control" $steps

stage "8 of 8: evaluation and report"
evaluate aligned "$demo/aligned"
evaluate sft_control "$demo/sft_control"
python report.py --out_dir "$demo" --base out/demo/eval_base --cpt_it out/demo/eval_cpt_it
printf '\nopen %s/report.html  (%d s)\n' "$demo" $((SECONDS - began))
