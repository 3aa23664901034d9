"""TAT-QA's scores: the original exact match and F1 with scale, and a tolerant exact match.

    "The change was [[(3.2) million]]"  -> spans ["(3.2)"], scale "million"
    "1,452.4; 44.1 million"             -> spans ["1,452.4", "44.1"], scale "million"

The original (NExTplusplus/TAT-QA) takes spans and scale from the model apart; here both come from
one text, in which a semicolon parts the spans. Every reading is linear in the text's length.
"""

import re
import string
from collections import namedtuple

from extract import plain

# The tolerant exact match --------------------------------------------------------------------

TOLERANCE = 1e-2  # relative
FACTORS = {"": 1, "percent": 0.01, "thousand": 1e3, "million": 1e6, "billion": 1e9}
SCALE_WORDS = {"%": "percent", "per cent": "percent", "percentage point": "percent",
               "k": "thousand", "m": "million", "mn": "million", "mm": "million", "b": "billion",
               "bn": "billion"} | {name: name for name in FACTORS if name}  # fmt: skip
SCALE = "|".join(sorted(map(re.escape, SCALE_WORDS), key=len, reverse=True))
CURRENCY = r"(?:us\$|usd|eur|gbp|rmb|[$€£¥])"
QUANTITY = re.compile(
    rf"(?<![\w.,])(?P<open>\(\s?)?(?P<sign>[-+−–]?)(?:{CURRENCY}\s?)?(?P<open2>\(\s?)?"
    rf"(?P<sign2>[-+−–]?)(?:{CURRENCY}\s?)?(?P<number>\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?"
    rf"|\d+(?:\.\d*)?|\.\d+)(?P<close>\s?\))?(?:\s?(?P<scale>(?:{SCALE})(?:(?<=[a-z])s)?)(?!\w))?"
    rf"(?P<close2>\s?\))?(?:\s?(?:{CURRENCY}|dollars|euros?))?(?!\w)",
    re.I,
)
YEAR = re.compile(r"(?:19|20)\d\d")
Quantity = namedtuple("Quantity", "number scale")  # (-3.2, "million"); scale "" where none is said


def numeral(text, within=False):
    """Match of the number that a text consists of, else None; `within`: or the only one in it."""
    text = " ".join(text.split()).removesuffix(".")
    found = QUANTITY.fullmatch(text) if len(text) < 100 else None
    if found or not within:
        return found
    found = QUANTITY.search(text)
    if found and re.search(r"\d", text[: found.start()] + text[found.end() :]):
        return None
    return found


def quantity(text, within=False):
    """The same as a Quantity."""
    found = numeral(text, within)
    if not found:
        return None
    opened, closed = found["open"] or found["open2"], found["close"] or found["close2"]
    minus = bool(opened and closed) or any(c in "-−–" for c in found["sign"] + found["sign2"])
    number = float(found["number"].replace(",", ""))
    word = (found["scale"] or "").lower()
    scale = SCALE_WORDS.get(word) or SCALE_WORDS.get(word.removesuffix("s"), "")
    return Quantity(-number if minus else number, scale)


def same(given, gold, scale="", exact=False):
    """Does a text give the gold answer? The tolerant rule, for one span:

    Gold is a number (commas of thousands, a currency, %, a scale word, brackets or a minus for
    negative allowed): the text must be or hold exactly one number, at most 1e-2 of gold away. The
    scale counts (12% = 0.12, 1.2 billion = 1,200 million), but a text that names none is also
    compared without gold's. Years from 1900 to 2099, and counts (`exact`), must be equal.
    Gold is anything else: equal up to case, punctuation, articles and white space.
    """
    target = quantity(gold)
    if target is None:
        return bool(plain(gold)) and plain(given) == plain(gold)
    found = quantity(given, within=True)
    if found is None:
        return False
    target = target._replace(scale=target.scale or scale)
    year = YEAR.fullmatch(gold.strip()) and not target.scale
    room = 1e-9 + (0 if exact or year else TOLERANCE)

    def near(a, b):
        return abs(a - b) <= room * abs(b)

    a, b = (q.number * FACTORS[q.scale] for q in (found, target))
    return near(a, b) or (not found.scale and near(found.number, target.number))


LIST_MARK = re.compile(r"^[ \t]*(?:[-*•]|\d{1,2}[.)])[ \t]+", re.M)
PARTINGS = (";", r"\n", r",\s", r"[;\n]|,\s|\band\b")


def em(prediction, row):
    """Tolerant exact match of a row, 0.0 or 1.0: `same` for every span, in any order.

    Several spans may be parted by semicolons, as the question asks for, by lines with or without
    the marks of a list, or by commas and "and".
    """
    golds = row["answers"]
    if len(golds) < 2:
        return float(fits(*parse(prediction, golds), golds, row))
    prediction = LIST_MARK.sub("", prediction)
    ways = (parse(prediction, golds, parting) for parting in PARTINGS)
    return float(any(fits(*way, golds, row) for way in ways))


def fits(spans, said, golds, row):
    """Does every span agree with a gold answer of its own? `said`: the scale of their numbers."""
    if len(spans) != len(golds):
        return False
    spans = [f"{span} {said}" if said and quantity(span) else span for span in spans]
    scale, exact = row.get("scale") or "", row["answer_type"] == "count"
    agree = [[j for j, g in enumerate(golds) if same(span, g, scale, exact)] for span in spans]
    return all_matched(agree, len(golds))


def all_matched(agree, count):
    """Can every span have a gold of its own? agree[i]: golds that fit span i (Kuhn 1955)."""
    owner = [None] * count

    def place(i, tried):
        for j in agree[i]:
            if j not in tried:
                tried.add(j)
                if owner[j] is None or place(owner[j], tried):
                    owner[j] = i
                    return True
        return False

    return all(place(i, set()) for i in range(len(agree)))


# Spans and scale of a text -------------------------------------------------------------------


def spans_of(prediction, golds, parting=";"):
    """The parts between semicolons, unless the one gold answer holds a semicolon itself."""
    split = len(golds) > 1 or ";" not in golds[0]
    parts = re.split(parting, prediction) if split else [prediction]
    return [part.strip() for part in parts if part.strip()]


def parse(prediction, golds, parting=";"):
    """(spans, scale) of a text: the scale that its numbers name, taken off them. Where they name
    several, the words stay and the scale is ""."""
    spans = spans_of(prediction, golds, parting)
    scales = {q.scale for span in spans if (q := quantity(span)) and q.scale}
    if len(scales) != 1:
        return spans, ""
    return [unscaled(span) for span in spans], scales.pop()


def unscaled(span):
    """A number without its scale word or percent sign; any other text as it is."""
    found = numeral(span)
    if not found or not found["scale"]:
        return span
    whole = found.string
    return whole[: found.start("scale")].rstrip() + whole[found.end("scale") :]


# The original scores -------------------------------------------------------------------------

NOT_NUMERIC = str.maketrans("", "", "'\"\\$€£¥%(),[]")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
ORIGINAL_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
                   "percent": 0.01}  # fmt: skip


def original(prediction, row):
    """(exact match, F1) of a row by the rules of TAT-QA's own scorer, both 0 to 1.

    Numbers take two decimals times their scale, so a wrong or missing scale is wrong; a lone number
    without scale may also give a percentage as its fraction. Spans are sorted and joined. F1 is
    that of the sets of words, rounded to two decimals; for arithmetic and counts it is the match.
    """
    golds, gold_scale = row["answers"], row.get("scale") or ""
    # Gold may hold the scale in its own words, as in "£3m"
    ways = [parse(prediction, golds), (spans_of(prediction, golds), "")]
    return max(original_scores(*way, golds, gold_scale, row["answer_type"]) for way in ways)


def original_scores(spans, scale, golds, gold_scale, answer_type):
    """The same from spans and scale apart, as the original takes them."""
    if not spans:
        return 0.0, 0.0
    gold = words_of(joined(golds, gold_scale))
    said = [joined(spans, scale)]
    if len(spans) == 1 and not scale and "%" not in spans[0] and is_number(spans[0]):
        if (number := to_number(spans[0])) is not None:
            said.append(f"{number:.4f}")
    match, f1 = max((float(words == gold), bag_f1(words, gold)) for words in map(words_of, said))
    return match, match if answer_type in ("arithmetic", "count") else f1


def scale_factor(text):
    """Factor of the first scale that a text holds; 1 without."""
    return next((f for name, f in ORIGINAL_SCALES.items() if name in text.lower()), 1)


def is_number(text):
    """Does a text begin with a number, and if a word follows, does it name a scale?"""
    words = " ".join(word.translate(NOT_NUMERIC) for word in text.split()).split()
    try:
        number = float(words[0])
    except (ValueError, IndexError):
        return False
    return number == number and (len(words) < 2 or scale_factor(words[1]) != 1)


def to_number(text):
    """Value of the first number in a text, with its scale word, brackets and percent sign."""
    found = re.search(r"([+-]?\d+(?:\.\d+)?)|[+-]?\.\d+", text.translate(NOT_NUMERIC))
    if not found or not found[1]:  # ".5" is none to the original
        return None
    whole = "." not in found[1] and len(found[1]) < 300  # longer ones do not fit in a float
    number = int(found[1]) if whole else float(found[1])
    word = re.search(r"(?<![\d.])[\d.]+\s?[a-zA-Z]+", text)
    number *= scale_factor(word[0]) if word else 1
    number *= -1 if re.search(r"\([\d.\s]+\)", text.strip()) else 1
    return round(number * (0.01 if re.search(r"[\d.\s]%", text.strip()) else 1), 4)


def joined(spans, scale):
    """Spans in sorted order as one text, numbers with four decimals and multiplied by the scale."""
    out = []
    for span in sorted(map(str, spans)):
        number = to_number(span) if is_number(span) else None
        if number is None:
            out.append(f"{span} {scale}" if scale else span)
        else:
            out.append(f"{number if '%' in span else round(number, 2) * scale_factor(scale):.4f}")
    return " ".join(out)


def words_of(text):
    """Words in lower case without articles, and without punctuation where they are no numbers."""
    words = []
    for word in text.lower().split(" "):
        if not is_number(word):
            word = word.translate(NO_PUNCTUATION)
        if is_number(word):
            word = str(to_number(word))
        words += re.sub(r"\b(a|an|the)\b", " ", word).split()
    return words


def bag_f1(words, gold):
    """F1 of two sets of words, two decimals; an empty set counts as wholly right on its side."""
    words, gold = set(words), set(gold)
    shared = len(words & gold)
    precision = shared / len(words) if words else 1.0
    recall = shared / len(gold) if gold else 1.0
    return round(2 * precision * recall / (precision + recall), 2) if precision + recall else 0.0
