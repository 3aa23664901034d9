"""What is compared in the study: names of arms and metrics, and one row for each finding.

A row is the difference a - b of one metric. claim: what the paper says of it (higher, lower, same),
or "" where it leaves the question open. why: the likely reason, shown where a claim fails or is not
decided, and what an open row teaches.
"""

from typing import NamedTuple

MARGIN = {"points": 2.0, "nats": 0.02}  # smaller differences are none
CEILING = 97.0  # points: where both checkpoints score as much, no method can show more

METRICS = {  # name: (what it is, unit)
    "concepts": ("facts about companies, asked in chat", "points"),
    "read": ("facts that stood in running text only, asked in chat", "points"),
    "knows": ("the same facts as the likeliest of four sentences", "points"),
    "tasks": ("sentiment and extraction", "points"),
    "exam": ("exam, answer right", "points"),
    "sampled": ("new exam exercises, a sample at temperature 1 right", "points"),
    "process": ("exam, every step right too", "points"),
    "finance": ("mean of concepts, tasks and exam", "points"),
    "if": ("instruction following", "points"),
    "general": ("general questions and calculations", "points"),
    "loss finance text": ("held-out loss of finance text", "nats"),
    "loss general text": ("held-out loss of general text", "nats"),
    "loss finance chat": ("held-out loss of finance chats", "nats"),
    "loss general chat": ("held-out loss of general chats", "nats"),
}

ARMS = {
    "base": "base",
    "text_finance": "CPT, finance text",
    "text": "CPT, finance + general text",
    "it": "IT",
    "cpt_then_it": "CPT, then IT",
    "joint": "CPT + IT, jointly",
    "warmup": "joint, 50% warmup",
    "half_tokens": "text cut to the chats' tokens",
    "half_rows": "text cut to the chats' rows",
    "half_all": "text not cut",
    "two_groups": "curriculum of two groups",
    "one_mix": "the same rows in one mix",
    "policy": "CPT + IT, 3 passes",
    "fap": "FAP",
    "scp": "SCP",
    "both": "FAP + SCP",
    "scp_self": "SCP, own corrections",
    "flawed": "FAP, any process",
    "sft_fap": "SFT on FAP's chosen",
    "sft_scp": "SFT on SCP's chosen",
    "sft_both": "SFT on FAP + SCP's chosen",
    "no_nll": "FAP + SCP without NLL",
    "from_base": "FAP + SCP from the base",
    "general": "FAP + SCP + general pairs",
    "naive": "naive pairs",
    "other": "FAP + SCP of another model",
    "first_64": "64 pairs",
    "first_256": "256 pairs",
    "sft_first_64": "SFT, 64 chosen",
    "sft_first_256": "SFT, 256 chosen",
    "two_samples": "2 samples a prompt",
    "noisy_0.2": "judge wrong on 20%",
    "noisy_0.4": "judge wrong on 40%",
    "sft_noisy_0.2": "SFT, judge wrong on 20%",
    "sft_noisy_0.4": "SFT, judge wrong on 40%",
    "trained": "trained judge",
    "second": "second round",
    "mistaken": "CPT + IT, 85% mistakes",
    "mistaken_dpo": "DPO, 85% mistakes",
    "mistaken_sft": "SFT, 85% mistakes",
}
STAGES = ["base", "text_finance", "text", "it", "cpt_then_it", "joint", "policy", "both"]


class Row(NamedTuple):
    group: str
    finding: str
    paper: str  # what it reports, or "open"
    a: str
    b: str
    metric: str
    claim: str = ""
    why: str = ""


STAGE, JOINT, ALIGN = "What each stage brings", "How text and instructions are joined", "Alignment"
PAIRS, SIDE = "Which pairs", "What the rejected side adds"
JUDGE, MORE = "How good a judge, how many pairs", "Forgetting"

ROWS = [
    Row(STAGE, "CPT alone puts the facts into the model", "CPT raises concepts",
        "text", "base", "knows", "higher",
        "Read as sentences to be completed; asked in chat, the same model answers none."),
    Row(STAGE, "CPT alone destroys instruction following", "MT-Bench 7.9 to 1.0",
        "text", "base", "if", "lower"),
    Row(STAGE, "General text softens what CPT forgets", "Mix best overall",
        "text", "text_finance", "loss general text", "lower"),
    Row(STAGE, "IT alone raises tasks like those it trains", "similar tasks rise",
        "it", "base", "tasks", "higher"),
    Row(STAGE, "IT alone leaves facts it was not told where they were", "novel ones barely move",
        "it", "base", "read", "same",
        "A margin of 2 points is narrow for 100 facts."),
    Row(STAGE, "CPT + IT leaves the exam at the base's level", "CFA-Challenge 34.4 to 35.6",
        "policy", "base", "exam", "same",
        "The instructions of this world hold worked exercises of every formula of the exam; "
        "without them the policy would never be right, and there would be no pairs."),
    Row(JOINT, "Joint beats CPT then IT: facts from text", "joint better on novel tasks",
        "joint", "cpt_then_it", "read", "higher"),
    Row(JOINT, "Joint beats CPT then IT: tasks", "joint better on similar tasks",
        "joint", "cpt_then_it", "tasks", "higher",
        "Two passes leave the headlines unlearned in some seeds of the joint run (three do "
        "not); the second run of the sequence gives the chats a rising learning rate of their "
        "own."),
    Row(JOINT, "Joint beats CPT then IT: general", "joint better on general tasks",
        "joint", "cpt_then_it", "general", "higher"),
    Row(JOINT, "CPT then IT beats IT alone on facts from text", "both above IT alone",
        "cpt_then_it", "it", "read", "higher"),
    Row(JOINT, "Text cut to the chats' tokens beats all of it: finance", "downsampling best",
        "half_tokens", "half_all", "finance", "higher",
        "The text that is cut away is read nowhere else, and all of it makes more steps. The "
        "paper's model had seen much of its text before, and the cut saved it from forgetting."),
    Row(JOINT, "All of the text is better for what is general", "no sampling best for general",
        "half_tokens", "half_all", "general", "lower",
        "Both keep nearly everything, as general rows are in both."),
    Row(JOINT, "Cut by tokens against by rows", "open: paper tokens, code rows",
        "half_tokens", "half_rows", "finance", why=
        "A row of text is shorter than one of the chats here, so the cut by rows leaves less "
        "text."),
    Row(JOINT, "A curriculum of two groups against one mix", "open",
        "two_groups", "one_mix", "finance", why=
        "Every row is read as often in both. What only the second group holds is met late, at a"
        " falling learning rate."),
    Row(JOINT, "Half of the steps warmup against a tenth", "open: 10% in group 1, 50% in 2",
        "warmup", "joint", "finance"),
    Row(ALIGN, "Alignment raises the exam", "CFA-Challenge 35.6 to 55.6",
        "both", "policy", "exam", "higher"),
    Row(ALIGN, "Alignment and the exam, every step counted", "open: not measured",
        "both", "policy", "process"),
    Row(ALIGN, "From the base, the same pairs do less than from CPT + IT", "EDTSUM 30.0 to 54.2",
        "from_base", "both", "exam", "lower"),
    Row(ALIGN, "General pairs are not needed: exam", "PA-In = PA-Mix",
        "general", "both", "exam", "same"),
    Row(ALIGN, "General pairs are not needed: general", "PA-In = PA-Mix",
        "general", "both", "general", "same"),
    Row(ALIGN, "Naive pairs bring nothing", "no gain, even on CFA",
        "naive", "policy", "exam", "same",
        "Where the model's own solution is right it is the given one word for word, so the pairs "
        "that remain set right against wrong. The paper's chosen texts were another model's."),
    Row(ALIGN, "The NLL term helps", "more effective, no numbers",
        "both", "no_nll", "exam", "higher",
        "Without it the log-probs of both sides fall, and with them the chosen solution "
        "(picture below)."),
    Row(PAIRS, "FAP alone", "open", "fap", "policy", "exam"),
    Row(PAIRS, "SCP alone", "open", "scp", "policy", "exam"),
    Row(PAIRS, "FAP against SCP: answer", "open", "fap", "scp", "exam"),
    Row(PAIRS, "FAP against SCP: every step", "open", "fap", "scp", "process"),
    Row(PAIRS, "Both against FAP alone", "open", "both", "fap", "exam"),
    Row(PAIRS, "Both against SCP alone", "open", "both", "scp", "exam"),
    Row(PAIRS, "FAP with a right process against any process", "open",
        "fap", "flawed", "process", why=
        "Right answers with a wrong step are rare in this exam of numbers."),
    Row(PAIRS, "Own solutions against another model's", "open", "both", "other", "exam"),
    Row(PAIRS, "Own corrections against the judge's", "open: Step-DPO 55.8 against 55.1",
        "scp_self", "scp", "exam"),
    Row(SIDE, "DPO against SFT on the same chosen texts: FAP", "open",
        "fap", "sft_fap", "exam", why=
        "A right and a wrong solution compete for the same next token, so raising the chosen "
        "one lowers the other: the rejected side has nothing to add."),
    Row(SIDE, "The same: SCP", "open", "scp", "sft_scp", "exam"),
    Row(SIDE, "The same: FAP + SCP", "open", "both", "sft_both", "exam"),
    Row(SIDE, "The same: 64 pairs", "open", "first_64", "sft_first_64", "exam"),
    Row(SIDE, "The same: 256 pairs", "open", "first_256", "sft_first_256", "exam"),
    Row(SIDE, "The same: a judge wrong on 20%", "open",
        "noisy_0.2", "sft_noisy_0.2", "exam"),
    Row(SIDE, "The same: a judge wrong on 40%", "open",
        "noisy_0.4", "sft_noisy_0.4", "exam", why=
        "Greedy answers follow the majority of the chosen texts; samples (below) show more."),
    Row(SIDE, "The same: errors all but systematic (85%)", "open",
        "mistaken_dpo", "mistaken_sft", "exam"),
    Row(SIDE, "Sampled, not greedy: FAP + SCP", "open", "both", "sft_both", "sampled"),
    Row(SIDE, "Sampled: 64 pairs", "open", "first_64", "sft_first_64", "sampled"),
    Row(SIDE, "Sampled: a judge wrong on 20%", "open",
        "noisy_0.2", "sft_noisy_0.2", "sampled", why=
        "Where the judge errs the rejected side tells something: a fifth of the chosen texts is "
        "wrong, SFT learns to write such, and four pairs in five call it the worse."),
    Row(SIDE, "Sampled: a judge wrong on 40%", "open",
        "noisy_0.4", "sft_noisy_0.4", "sampled", why=
        "At three right pairs in five there is little left to tell."),
    Row(SIDE, "Sampled: errors all but systematic (85%)", "open",
        "mistaken_dpo", "mistaken_sft", "sampled"),
    Row(SIDE, "What DPO and SFT on FAP + SCP leave of the facts", "open",
        "both", "sft_both", "concepts", why=
        "In two seeds of five DPO loses a tenth of the facts, in the others nothing; SFT never. "
        "The paper, too, saw tasks collapse after alignment."),
    Row(SIDE, "The same: of the tasks", "open", "both", "sft_both", "tasks"),
    Row(JUDGE, "A trained judge of 0.8M parameters against the exact one", "open",
        "trained", "both", "exam"),
    Row(JUDGE, "A judge wrong on 20% of the pairs", "open", "noisy_0.2", "both", "exam"),
    Row(JUDGE, "A judge wrong on 40% of the pairs", "open", "noisy_0.4", "both", "exam", why=
        "Greedy answers follow the majority of the pairs, and three in five are right."),
    Row(JUDGE, "256 pairs against all", "open", "first_256", "both", "exam"),
    Row(JUDGE, "64 pairs against 256", "open", "first_64", "first_256", "exam", why=
        "64 pairs are four steps: the policy knows the right way and is tipped over to it."),
    Row(JUDGE, "2 samples a prompt against 6", "open", "two_samples", "both", "exam"),
    Row(JUDGE, "A second round", "open", "second", "both", "exam"),
    Row(MORE, "CPT forgets more than IT", "CPT > IT > PA", "text", "it", "general", "lower"),
    Row(MORE, "CPT + IT keeps what is general", "little forgetting",
        "policy", "base", "general", "same"),
    Row(MORE, "Alignment keeps what is general", "least forgetting",
        "both", "policy", "general", "same"),
    Row(MORE, "Alignment keeps instruction following", "MT-Bench 7.29 to 7.36",
        "both", "policy", "if", "same"),
    Row(MORE, "Alignment and the facts", "open: not measured", "both", "policy", "concepts"),
    Row(MORE, "Alignment keeps the tasks", "mostly; three credit tasks collapse",
        "both", "policy", "tasks", "same"),
    Row(MORE, "Alignment and general text", "open: not measured",
        "both", "policy", "loss general text"),
]  # fmt: skip
