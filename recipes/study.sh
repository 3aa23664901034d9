#!/usr/bin/env bash
# The findings of FinDAP (arXiv:2501.04961, section 5) on the sample world, each as a comparison of
# checkpoints over several seeds, and the questions that the paper leaves open.
#
#   recipes/study.sh [SEEDS] [OUT]        default "0 1 2 3 4" out/study
#
# JOBS halves of a seed at a time (default 2: one a core, as a model this small gains nothing from
# two). About 45 minutes of one busy core a seed. What is done is not done again, so a stopped study
# goes on, more seeds add to it, and a second run only writes the result again:
#
#   STUDY.md  benchmarks/results/study.json  benchmarks/results/study/*.png  OUT/study.html
#
# (of the default OUT; another one gets these files itself). A seed is another finance world for the
# same base, another order of the data, other samples. Its arms:
#
#   text_finance, text    continual pretraining alone: finance text; with general text
#   it                    instruction tuning alone          cpt_then_it   one after the other
#   joint                 both in one stream                warmup        half of its steps warm up
#   half_*                with half of the chats: text cut to their tokens, to their rows, not at all
#   two_groups, one_mix   a curriculum, and the same rows in one mix
#   policy                joint, three passes instead of two: what the arms below are aligned from
#   fap scp both          pairs by outcome, by process; sft_...: plain SFT on their chosen texts
#   the others            see `stages` and `alignment` below
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

once() { # once NAME RESULT COMMAND...: unless RESULT, a file or a mark, is there; seconds in times.jsonl
  local name=$1 result=$2 began
  shift 2
  [ -e "$result" ] && return
  began=$(date +%s.%N)
  "$@" >>"$here/log.txt" 2>&1 || { echo "error: seed $seed, $name: see $here/log.txt" >&2 && exit 1; }
  [ -e "$result" ] || touch "$result"
  awk -v name="$name" -v began="$began" -v ended="$(date +%s.%N)" \
    'BEGIN { printf "{\"stage\": \"%s\", \"seconds\": %.2f}\n", name, ended - began }' >>"$here/times.jsonl"
}

evaluate() { # evaluate ARM CHECKPOINT: all capabilities, and what it has forgotten
  once "evaluate" "$here/eval_$1/results.json" python evaluate.py --init_from "$2" --out_dir "$here/eval_$1" \
    --data "$data/eval" --tasks concepts,tasks,reasoning,instruction_following,general
  once "losses" "$here/losses_$1.json" python benchmarks/losses.py --init_from "$2" \
    --out "$here/losses_$1.json" --files "$heldout" --cloze "$data/parts/cloze_text.jsonl"
}

stage() { # stage ARM FROM PASSES TEXT CHAT FLAGS...: a run of train_cpt.py; no TEXT or CHAT: "" for it
  once "cpt" "$here/$1/model.safetensors" python train_cpt.py --out_dir "$here/$1" --seed "$seed" \
    --init_from "$2" --epochs "$3" --text "$4" --chat "$5" \
    --heldout_text "" --heldout_chat "" --token_cache "$here/tokens" "${@:6}"
  evaluate "$1" "$here/$1"
}

judged() { # judged FOLDER POLICY PROMPTS: samples of a policy and what the judge says of them
  once "sample" "$1/sampled" python reward.py sample --init_from "$2" --out_dir "$1" --prompts "$3" \
    --samples 6 --max_new_tokens 96 --seed "$seed"
  once "judge" "$1/judged" python reward.py judge --out_dir "$1" --base_url "$judge_url"
}

pairs() { # pairs NAME FOLDER FLAGS...: reward/NAME.jsonl of the logs in FOLDER, which is reward or lies in it
  local up=../
  [ "$2" = "$reward" ] && up=""
  once "pairs" "$reward/$1.jsonl" python reward.py pairs --out_dir "$2" --pairs "$up$1.jsonl" --seed "$seed" "${@:3}"
}

made() { # made NAME COMMAND ARGUMENTS...: NAME.jsonl by study_files.py
  once "pairs" "$reward/$1.jsonl" python recipes/study_files.py "$2" "$3" "$reward/$1.jsonl" "${@:4}"
}

steps="--epochs 1 --lr 1.5e-4 --batch_tokens 2048 --micro_batch_tokens 2048" # the same for all
dpo() {                                                                      # dpo ARM FROM PAIRS FLAGS...
  once "dpo" "$here/$1/model.safetensors" python train_dpo.py --init_from "$2" --out_dir "$here/$1" \
    --pairs "$3" --beta 0.03 --seed "$seed" --token_cache "$here/tokens" $steps "${@:4}"
  evaluate "$1" "$here/$1"
}

sft() { # sft ARM FROM PAIRS: the chosen texts alone
  once "sft" "$here/$1/model.safetensors" python train_sft.py --init_from "$2" --out_dir "$here/$1" \
    --pairs "$3" --seed "$seed" --token_cache "$here/tokens" $steps
  evaluate "$1" "$here/$1"
}

sampled() { # sampled WORLD ARM...: how often a sample at temperature 1 is right, on exercises nobody has seen
  local arm
  head -n 500 "$1/exam_judge.jsonl" >"$1/unseen.jsonl"
  for arm in "${@:2}"; do
    once "sample" "$here/sampled_$arm/sampled" python reward.py sample --init_from "$here/$arm" \
      --out_dir "$here/sampled_$arm" --prompts "$1/unseen.jsonl" --samples 2 --max_new_tokens 96 --seed "$seed"
  done
}

prepared() { # the world of a seed: the same base, another finance part
  here="$out/seed$seed" data="$out/seed$seed/data" reward="$out/seed$seed/reward"
  base=sample/base policy="$here/policy" text="$data/cpt.jsonl" chat="$data/sft.jsonl" heldout=""
  mkdir -p "$reward"
  once "world" "$data/made" python sample/world.py --out "$data" --finance_seed "$seed" --parts
  for kind in finance_text general_text finance_chat general_chat; do
    heldout="$heldout$data/parts/heldout_$kind.jsonl,"
  done
}

stages() { # what each stage brings, and how text and instructions are joined
  local half="$data/half.jsonl" parts="$data/parts" world="$here/mistaken_data" arm mix
  local finance="$parts/text_companies.jsonl,$parts/text_definitions.jsonl,$parts/text_news.jsonl"
  evaluate base $base
  stage text_finance $base 2 "$finance" ""
  stage text $base 2 "$text" ""
  stage it $base 2 "" "$chat"
  stage cpt_then_it "$here/text" 2 "" "$chat"
  stage joint $base 2 "$text" "$chat"
  head -n 4000 "$chat" >"$half"
  for mix in tokens rows all; do stage half_$mix $base 2 "$text" "$half" --mix $mix; done
  once "world" "$data/two_groups.json" python recipes/study_files.py curriculum "$parts" "$data"
  for mix in two_groups one_mix; do stage $mix $base 1 "" "" --mixture "$data/$mix.json"; done

  # A world whose instructions nearly always make the usual mistake
  once "world" "$world/made" python sample/world.py --out "$world" --finance_seed "$seed" --mistakes 0.85
  stage mistaken $base 3 "$world/cpt.jsonl" "$world/sft.jsonl"
  judged "$reward/mistaken" "$here/mistaken" "$world/exam_train.jsonl"
  pairs mistaken_both "$reward/mistaken"
  dpo mistaken_dpo "$here/mistaken" "$reward/mistaken_both.jsonl"
  sft mistaken_sft "$here/mistaken" "$reward/mistaken_both.jsonl"
  sampled "$world" mistaken mistaken_dpo mistaken_sft
}

alignment() { # which pairs help, how many, and how good their judge has to be
  local arm count share
  stage policy $base 3 "$text" "$chat"
  judged "$reward" "$policy" "$data/exam_train.jsonl"
  once "correct" "$reward/corrected" python reward.py correct --init_from "$policy" --out_dir "$reward" \
    --max_new_tokens 96 --samples 8 --seed "$seed"
  pairs fap "$reward" --scp_per_prompt 0
  pairs scp "$reward" --fap_per_prompt 0
  pairs both "$reward"
  pairs scp_self "$reward" --fap_per_prompt 0 --corrections self
  pairs flawed "$reward" --scp_per_prompt 0 --flawed
  for arm in fap scp both scp_self flawed; do dpo $arm "$policy" "$reward/$arm.jsonl"; done
  for arm in fap scp both; do sft sft_$arm "$policy" "$reward/$arm.jsonl"; done
  dpo no_nll "$policy" "$reward/both.jsonl" --nll_coef 0
  dpo from_base $base "$reward/both.jsonl"
  dpo general "$policy" "$reward/both.jsonl,sample/data/pairs.jsonl"
  made naive naive "$reward"
  dpo naive "$policy" "$reward/naive.jsonl"
  # Another model's solutions of the same exercises
  stage warmup $base 2 "$text" "$chat" --warmup 0.5
  judged "$reward/other" "$here/warmup" "$data/exam_train.jsonl"
  pairs other "$reward/other"
  dpo other "$policy" "$reward/other.jsonl"
  # How many
  for count in 64 256; do
    made first_$count first "$reward/both.jsonl" $count
    dpo first_$count "$policy" "$reward/first_$count.jsonl"
    sft sft_first_$count "$policy" "$reward/first_$count.jsonl"
  done
  once "pairs" "$reward/two/trajectories.jsonl" python recipes/study_files.py samples "$reward" "$reward/two" 2
  pairs two_samples "$reward/two"
  dpo two_samples "$policy" "$reward/two_samples.jsonl"
  # How good the judge has to be
  for share in 0.2 0.4; do
    made noisy_$share swapped "$reward/both.jsonl" $share
    dpo noisy_$share "$policy" "$reward/noisy_$share.jsonl"
    sft sft_noisy_$share "$policy" "$reward/noisy_$share.jsonl"
  done
  once "judge, trained" "$reward/judged_by_trained" python reward.py judge --out_dir "$reward" \
    --judge local --judge_from out/judge --verdicts by_trained.jsonl --max_tokens 256
  pairs trained "$reward" --verdicts by_trained.jsonl
  dpo trained "$policy" "$reward/trained.jsonl"
  # Once more, from what is aligned
  judged "$reward/second" "$here/both" "$data/exam_train.jsonl"
  pairs second "$reward/second"
  dpo second "$here/both" "$reward/second.jsonl"
  sampled "$data" policy both sft_both first_64 sft_first_64 noisy_0.2 sft_noisy_0.2 noisy_0.4 sft_noisy_0.4
}

if [ "${1:-}" = --one ]; then # half of a seed, in a process of its own
  out=$2 part=$3 seed=$4
  prepared
  $part
  echo "seed $seed, $part: done"
  exit
fi
seeds=${1:-0 1 2 3 4} out=${2:-out/study}
source env.sh
make_env -r requirements.txt matplotlib==3.11.2
start_judge
export judge_url
[ -e out/judge/done.json ] || ./sample/make_judge.sh # the trained one; 8 minutes, once
for seed in $seeds; do prepared; done # before both halves of a seed want it
for part in stages alignment; do
  printf "$part %s\n" $seeds
done | xargs -P "${JOBS:-2}" -L 1 "$BASH" "$0" --one "$out"
python benchmarks/study.py --out_dir "$out"
