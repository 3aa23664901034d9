"""Tables about borrowers, cards and companies put into words -> rows.

The words are those of the published FLARE rows (CALM, arXiv 2310.00566), so that few-shot examples
and training rows read like the test rows. Where a source holds more rows than FinEval lists, those
with the smallest hashes are the test half.
"""

import hashlib

from choice_sets import label_row
from config import UserError
from jsonl import check_fields
from sources import Found, csv_rows, find, read_arff, read_records, rows_of

LENDINGCLUB_TEST, POLISH_TEST = 2690, 1740  # as many as the paper lists; which ones is unknown


def attributes(pairs):
    """[(name, value)] -> one sentence; an empty value is unknown."""
    shown = (f"{name}: {'unknown' if value in (None, '') else value}" for name, value in pairs)
    return f"The client has attributes: {', '.join(shown)}."


def fixed_sample(found, rows, size):
    """The rows with the smallest hashes are tested, the others left for training: the choice
    depends on the rows alone, neither on their order nor on a random generator."""
    rows.sort(key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest())
    found.test, found.train = rows[:size], rows[size:]
    if found.train:
        found.note = (f"of {len(rows)} rows a fixed sample of {size}, the smallest hashes, is the "
                      "test half: FinEval's own split is not published")  # fmt: skip
    return found


# Australian: symbols -------------------------------------------------------------------------


def australian_row(where, record):
    """{"A1" .. "A14", "answer"}: the split that CALM documents."""
    names = [f"A{k}" for k in range(1, 15)]
    check_fields(record, {"answer": str} | dict.fromkeys(names, (int, float, str)), where)
    text = attributes((name, record[name]) for name in names)
    return label_row("australian", where, text, record["answer"])


# German and CCFraud: the test rows are published in words, the training rows as codes ------------

GERMAN = (
    "Status of existing checking account", "Duration in month", "Credit history", "Purpose",
    "Credit amount", "Savings account or bonds", "Present employment since",
    "Installment rate in percentage of disposable income", "Personal status and sex",
    " Other debtors or guarantors", "Present residence since", "Property", "Age in years",
    "Other installment plans", "Housing", "Number of existing credits at this bank", "Job",
    "Number of people being liable to provide maintenance for", "Telephone", "foreign worker",
)  # fmt: skip
# UCI 144, as the published test rows word them
GERMAN_CODES = """
A11 smaller than 0 DM
A12 bigger than 0 DM but smaller than 200 DM
A13 bigger than 200 DM OR salary assignments for at least 1 year
A14 no checking account
A30 no credits taken or all credits paid back duly
A31 all credits at this bank paid back duly
A32 existing credits paid back duly till now
A33 delay in paying off in the past
A34 critical account or other credits existing (not at this bank)
A40 car (new)
A41 car (used)
A42 furniture or equipment
A43 radio or television
A44 domestic appliances
A45 repairs
A46 education
A47 vacation
A48 retraining
A49 business
A410 others
A61 smaller than 100 DM
A62 bigger than 100 smaller than  500 DM
A63 bigger than 500 smaller than 1000 DM
A64 bigger than 1000 DM
A65 unknown or no savings account
A71 unemployed
A72 smaller than 1 year
A73 bigger than 1  smaller than 4 years
A74 bigger than 4  smaller than 7 years
A75 bigger than 7 years
A91 male: divorced or separated
A92 female: divorced or separated or married
A93 male and single
A94 male and married or widowed
A95 female and single
A101 none
A102 co-applicant
A103 guarantor
A121 real estate
A122 building society savings agreement or life insurance
A123 car or other
A124 unknown or no property
A141 bank
A142 stores
A143 none
A151 rent
A152 own
A153 for free
A171 unemployed or unskilled or non-resident
A172 unskilled or resident
A173 skilled employee or official
A174 management or self-employed or highly qualified employee or officer
A191 none
A192 yes, registered under the customers name
A201 yes
A202 no
"""


def german_row(where, cells):
    """20 attributes, coded or numbers, then 1 (good) or 2 (bad)."""
    said = dict(line.split(" ", 1) for line in GERMAN_CODES.strip().split("\n"))
    if len(cells) != 21:
        raise UserError(f"{where}: {len(cells)} cells, not 20 attributes and the class")
    odd = [cell for cell in cells[:-1] if cell not in said and not cell.isdigit()]
    if odd or cells[-1] not in ("1", "2"):
        raise UserError(f"{where}: {(odd or cells[-1:])[0]!r} is no code of UCI's German set")
    states = (f"The state of {name} is {said.get(cell, cell)}. "
              for name, cell in zip(GERMAN, cells, strict=False))  # fmt: skip
    return label_row("german", where, f"'{''.join(states)}'", ("good", "bad")[int(cells[-1]) - 1])


def ccfraud_row(where, cells):
    """Gender, state, cards, balance, two numbers of transactions, limit, then 0 (good) or 1."""
    if len(cells) != 8 or not all(cell.isdigit() for cell in cells) or cells[-1] not in "01":
        raise UserError(f"{where}: needs 8 numbers, the last one 0 or 1")
    names = ("the state number", "the number of cards", "the credit balance",
             "the number of transactions", "the number of international transactions",
             "the credit limit")  # fmt: skip
    states = (f"{name} is {cell}" for name, cell in zip(names, cells[1:-1], strict=True))
    # The published rows call every client a female, whatever the code
    text = f"'The client is a female, {', '.join(states)}.'"
    return label_row("cra_ccfraud", where, text, ("good", "bad")[int(cells[-1])])


# LendingClub and Polish: other columns or another split than FinEval's ---------------------------


def prepare_lendingclub(source):
    """csv with a header, the label (good, bad) in its last column, Class."""
    path, found = find(source, "lending_club.csv", "*.csv"), Found([])

    def row(where, record):
        check_fields(record, {"Class": str}, where)
        named = ((key.replace("_", " "), v) for key, v in record.items() if key != "Class")
        return label_row("lendingclub", where, attributes(named), record["Class"])

    records = read_records(path)
    if records and "Class" not in records[0][1]:
        raise UserError(f"{path}:1: Class: no such column; it has "
                        f"{', '.join(list(records[0][1])[:8])}")  # fmt: skip
    return fixed_sample(found, rows_of(records, row, found.left_out), LENDINGCLUB_TEST)


# UCI 365, Attr1 to Attr64
RATIOS = """
net profit / total assets; total liabilities / total assets; working capital / total assets; current
assets / short-term liabilities; (cash + short-term securities + receivables - short-term
liabilities) / (operating expenses - depreciation) * 365; retained earnings / total assets; EBIT /
total assets; book value of equity / total liabilities; sales / total assets; equity / total assets;
(gross profit + extraordinary items + financial expenses) / total assets; gross profit / short-term
liabilities; (gross profit + depreciation) / sales; (gross profit + interest) / total assets; (total
liabilities * 365) / (gross profit + depreciation); (gross profit + depreciation) / total
liabilities; total assets / total liabilities; gross profit / total assets; gross profit / sales;
(inventory * 365) / sales; sales (n) / sales (n-1); profit on operating activities / total assets;
net profit / sales; gross profit (in 3 years) / total assets; (equity - share capital) / total
assets; (net profit + depreciation) / total liabilities; profit on operating activities / financial
expenses; working capital / fixed assets; logarithm of total assets; (total liabilities - cash) /
sales; (gross profit + interest) / sales; (current liabilities * 365) / cost of products sold;
operating expenses / short-term liabilities; operating expenses / total liabilities; profit on sales
/ total assets; total sales / total assets; (current assets - inventories) / long-term liabilities;
constant capital / total assets; profit on sales / sales; (current assets - inventory - receivables)
/ short-term liabilities; total liabilities / ((profit on operating activities + depreciation) *
(12/365)); profit on operating activities / sales; rotation receivables + inventory turnover in
days; (receivables * 365) / sales; net profit / inventory; (current assets - inventory) / short-term
liabilities; (inventory * 365) / cost of products sold; EBITDA / total assets; EBITDA / sales;
current assets / total liabilities; short-term liabilities / total assets; (short-term liabilities *
365) / cost of products sold; equity / fixed assets; constant capital / fixed assets; working
capital; (sales - cost of products sold) / sales; (current assets - inventory - short-term
liabilities) / (sales - gross profit - depreciation); total costs / total sales; long-term
liabilities / equity; sales / inventory; sales / receivables; (short-term liabilities * 365) /
sales; sales / short-term liabilities; sales / fixed assets
"""


def prepare_polish(source):
    """arff of UCI 365, year 5: Attr1 to Attr64, then class 0 or 1; `?` is unknown."""
    names = [" ".join(name.split()) for name in RATIOS.split(";")]
    path, found = find(source, "5year.arff*", "*.arff*"), Found([])
    columns, records = read_arff(path)
    if len(columns) != len(names) + 1 or columns[-1].lower() != "class":
        raise UserError(f"{path}: needs Attr1 to Attr64 and class, has {len(columns)} columns")

    def row(where, cells):
        if cells[-1] not in ("0", "1"):
            raise UserError(f"{where}: class: {cells[-1]!r} is not 0 or 1")
        known = (None if cell == "?" else cell for cell in cells[:-1])
        text = attributes(zip(names, known, strict=True))
        return label_row("polish", where, text, ("no", "yes")[int(cells[-1])])

    return fixed_sample(found, rows_of(records, row, found.left_out), POLISH_TEST)


MAKERS = {"australian": australian_row}
# Rows of codes, csv files without a header
CODED = {"german": german_row, "cra_ccfraud": ccfraud_row}


def coded_rows(name, path, left_out):
    records = [(f"{path}:{line}", cells) for line, cells in csv_rows(path)]
    return rows_of(records, CODED[name], left_out)
