"""FinDAP's published results on FinEval (arXiv:2501.04961), zero-shot, in points from 0 to 100.

    PAPER["fpb"].llama_fin -> 91.13

Reference columns for reports, no truth about data at hand: sizes above 1,000 are often rounded, the
splits of several sets are not published, and most prompts are unknown. The order of the three
rightmost columns was not checked against the paper's pdf.
"""

from typing import NamedTuple


class Reference(NamedTuple):
    n: int  # rows, as the paper lists them
    way: str  # "d" direct answer | "c" chain of thought
    metric: str  # in this repository's names; "judge" was GPT-4o
    llama_fin: float  # FinDAP's model, continued and aligned from Llama3-8B-Instruct
    no_pa: float  # the same without preference alignment
    llama3: float  # Llama3-8B-Instruct, where it started
    gpt4o: float
    palmyra: float  # Palmyra-Fin-70B


# MT-Bench's ratings of 1 to 10 are here times ten: Llama-Fin has 7.36
TABLE = """
task              n     way metric  llama_fin no_pa llama3 gpt4o palmyra

fpb               970   d   acc     91.13     92.99  73.09 82.16 67.11
fiqa_sa           235   d   acc     95.32     94.47  77.87 68.51 71.91
fomc              496   d   acc     64.31     63.10  56.65 67.94 63.10
ner               98    d   rouge1  76.69     74.33  45.03 43.02 54.29
edtsum            2000  d   rouge1  53.78     54.21  11.50 18.15 21.77

mmlu              14042 c   acc     47.42     47.22  48.14 63.88 54.93
arc               3548  c   acc     89.43     88.95  89.29 97.85 89.01
nq_open           7842  c   em      19.20     16.20  18.47 27.92 19.25
mmlu_finance      1460  d   acc     64.20     63.93  65.71 86.52 75.15

ectsum            495   d   rouge1  34.10     34.41  35.92 35.90 33.24
mlesg             300   d   acc     40.67     42.00  36.33 45.67 39.67
ma                500   d   acc     84.00     84.60  82.60 73.80 62.60
sm_bigdata        1470  c   acc     54.14     52.04  55.30 49.18 48.70
sm_acl            3720  c   acc     51.99     49.89  50.51 50.97 51.21
sm_cikm           1140  c   acc     54.94     44.88  55.56 49.78 52.92
cra_ccf           2280  c   mcc      0.83      0.61  -0.32  6.16  3.12
cra_ccfraud       2100  c   acc     34.03     32.32  14.78 49.57 33.03
german            200   c   acc     64.00     60.50  33.50 17.00 12.00
australian        139   c   acc     44.60     51.80  66.91 51.80 12.95
lendingclub       2690  c   acc     68.49     65.96  52.69 65.03 23.40
polish            1740  c   mcc     15.30      0.65  12.37 17.38 13.78
taiwan            1370  c   acc     40.81     96.41  12.01  8.57 52.58
portoseguro       2380  c   acc     35.14     86.57  96.98 96.60 56.20
travelinsurance   2530  c   acc     41.52     98.50   6.39 54.03 17.28
tatqa             1670  c   judge   66.61     66.43  63.43 74.90 64.21
financebench      150   c   judge   54.00     52.00  52.70 51.30 56.67

mt_bench          80    d   judge   73.60     72.90  78.80 91.00 58.00

mathqa            2985  c   acc     55.08     54.30  51.16 70.82 41.51
social_iqa        2636  c   acc     75.23     73.64  68.83 78.92 77.28
openbookqa        500   c   acc     82.60     79.20  77.00 94.60 87.00
hellaswag         10003 c   acc     81.90     78.92  73.34 81.76 69.69
winogrande        1767  c   acc     70.32     67.48  62.51 85.71 74.27
piqa              3000  c   acc     85.85     84.39  79.82 94.34 86.72
cfa_easy          1030  c   acc     66.28     62.31  60.56 83.14 36.05
cfa_challenge     90    c   acc     55.56     35.56  34.44 74.44 25.56
"""


def read_table(text):
    """{task: Reference} of the lines below the header."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return {
        name: Reference(int(n), way, metric, *map(float, scores))
        for name, n, way, metric, *scores in lines[1:]
    }


PAPER = read_table(TABLE)
