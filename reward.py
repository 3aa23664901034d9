"""Preference distillation: the model's own solutions, judged, become preference pairs (FinDAP).

    prompts -> sample -> trajectories.jsonl -> judge -> verdicts.jsonl -> pairs -> pairs.jsonl
                                     correct -> continuations.jsonl ---------^

Two signals (arXiv:2501.04961 section 5.3). FAP, by outcome: a correct solution against an incorrect
one of the same prompt. SCP, by process: in a wrong solution, a correction of the first wrong step
against that step. Each stage only adds to its log, so a run that was stopped goes on where it was
when the same command is given again: nothing is sampled or judged twice.

    python reward.py sample --init_from out/cpt --prompts sample/data/exam_train.jsonl --samples 4
    python reward.py judge --judge exact       # or http with --base_url and --model, or local
    python reward.py correct --init_from out/cpt           # own corrections of wrong steps
    python reward.py pairs --corrections self --layout continuation
    python reward.py export --format trl                   # or processbench, trl_stepwise, chats
    python reward.py eval --cases processbench.jsonl --judge local --judge_from out/judge
"""

import sys

import parallel
from config import UserError, parse
from export import Export, export
from judge_eval import Eval, evaluate
from pairs import Pairs, pairs
from solutions import Correct, Sample, correct, sample
from verdicts import Judge, judge

STAGES = {
    "sample": (Sample, sample),
    "judge": (Judge, judge),
    "correct": (Correct, correct),
    "pairs": (Pairs, pairs),
    "export": (Export, export),
    "eval": (Eval, evaluate),
}


def main(words):
    usage = f"usage: python reward.py {'|'.join(STAGES)} [--help] [flags]"
    if words[:1] in (["-h"], ["--help"]):
        return print(f"{__doc__}\n{usage}")
    if not words or words[0] not in STAGES:
        raise UserError(usage)
    config, run = STAGES[words[0]]
    run(parse(config, words[1:]))


if __name__ == "__main__":
    with parallel.clean_exit():
        main(sys.argv[1:])
