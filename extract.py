"""What does a reply answer? Labels, letters, short texts and worked exam solutions.

    "The outlook is not good, I know: bad."  among good, bad  -> "bad"
    "Bonds fall. Selection: [[B]]"           among A, B, C    -> "B"
    "a bond pays a coupon"                   among A, B, C    -> None, not "A"

Pure functions. None means that no answer was found, which is counted beside every score.
"""

import math
import re
import string

# Labels in a reply ---------------------------------------------------------------------------

# "not good", "does not convey a negative", "no bad news": the label that follows is denied.
DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|rather than|no longer|hardly|far from)|n['’]t)\s+"
    r"(?:(?!but\b|only\b|just\b|merely\b)\w+\s+){0,2}[\"'*(]*$|\bno\s+[\"'*(]*$",
    re.I,
)
# "the sentiment of this text is", "Answer:", "classified as": the label that follows is concluded.
CONCLUDED = re.compile(
    r"\b(?:(?:answer|label|sentiment|stance|class|classification|prediction|conclusion)\b"
    r"[^.:;\n]{0,60}?(?:\bis|\bbe|:|=)|(?:classif|categori|label|rat)\w+\s(?:\w+\s+){0,4}?as)"
    r"\s*(?:an?\s+)?[\"'*\[(]*$",
    re.I,
)
WINDOW = 160  # characters


def label_pattern(labels):
    """Whole words only: "no" is not in "know" or "no-one". Of nested labels the longest wins."""
    case = "" if case_matters(labels) else "i"
    longest_first = sorted(labels, key=len, reverse=True)
    any_label = "|".join(r"\s+".join(map(re.escape, label.split())) for label in longest_first)
    return rf"(?<!\w)(?<!\w[-'’])((?{case}:{any_label}))(?!\w)(?![-'’]\w)"


def case_matters(labels):
    """Only where labels differ in nothing else: genotypes BB, Bb and bb."""
    return len({label.lower() for label in labels}) < len(set(labels))


def folded(text, labels):
    """Single spaces, and lower case unless the labels need their case."""
    text = " ".join(text.split())
    return text if case_matters(labels) else text.lower()


def strict_label(reply, labels):
    """The label that the reply consists of, up to case and surrounding punctuation, else None."""
    bare = folded(reply.strip(string.punctuation + string.whitespace + "“”‘’"), labels)
    return next((label for label in labels if folded(label, labels) == bare), None)


def extract_label(reply, labels):
    """The one label that the reply gives, else None: none named, or several without a conclusion.

    Of several the last one that is stated as a conclusion counts, else one that opens the reply,
    unless it begins a list ("good or bad").
    """
    canon = {folded(label, labels): label for label in labels}
    pattern = label_pattern(labels)
    given = [m for m in re.finditer(pattern, reply)
             if not DENIED.search(before(reply, m)) and not determiner(reply, m)]  # fmt: skip
    names = [canon.get(folded(m[1], labels)) for m in given]
    if len(set(names)) < 2:
        return names[0] if names else None
    for m, name in zip(reversed(given), reversed(names), strict=True):
        if CONCLUDED.search(before(reply, m)):
            return name
    opens = not re.search(r"\w", reply[: given[0].start()])
    return names[0] if opens and not listed(reply, given) else None


def determiner(reply, found):
    """Is it the "no" of "there is no doubt"? At the head of a reply, or concluded, it answers."""
    if found[1].lower() != "no" or not re.match(r"\s[a-z]", reply[found.end() : found.end() + 2]):
        return False
    inside = re.search(r"\w", before(reply, found))
    return bool(inside and not CONCLUDED.search(before(reply, found)))


def listed(reply, given):
    """Does the first label stand in a list of labels, as when a reply repeats the question?"""
    for a, b in zip(given, given[1:], strict=False):
        gap = " ".join(reply[a.end() : b.start()][:20].split())
        if gap in ("/", "|", "or", "and", ", or", ", and"):
            return True
        if gap != ",":
            break
    return False


def before(text, found):
    """The words before a match that can deny or conclude it: few, or long replies take minutes."""
    return text[max(0, found.start() - WINDOW) : found.start()]


# [[X]] on one line, X without brackets of that kind
BRACKETED = re.compile(r"(Selection:[ \t]{0,9})?\[\[((?:(?!\[\[|\]\])[^\n])*)\]\]")
DECLINED = re.compile(r"none(?: of .{0,30})?|neither|n/a|no (?:answer|option|choice)", re.I)


def bracketed(reply):
    """What every [[X]] of a reply holds, in order."""
    return [m[2].strip() for m in BRACKETED.finditer(reply)]


def selection(reply):
    """What the last `Selection: [[X]]` holds, the form that a chain of thought is asked for."""
    found = [m[2].strip() for m in BRACKETED.finditer(reply) if m[1]]
    return found[-1] if found else None


def extract_letter(reply, letters):
    """The letter chosen, by the surest sign there is; None if there is none or they contradict.

    In this order: the last [[A]] or boxed{A}; the last "answer is (A)"; the options named and not
    ruled out ("not option C", "option A is wrong"), if it is one; "therefore B", "I choose B", "B
    is correct"; a first line "A" or "A. ..", unless all options are listed. "A or B" is neither. A
    bare lower-case "a" is never a choice: nearly every text holds that word.
    """
    names, whole, reply = "".join(letters), reply, " ".join(reply.split())
    marked = re.findall(rf"(?:\[\[|boxed\{{) ?([{names}]) ?(?:\]\]|\}})", reply, re.I)
    if marked:
        return marked[-1].upper()
    # "The answer is A bond that pays": an article; "is A because", "option A pays": none
    word, is_ = r"\b(?i:options?|choices?)", r"(?:\s+(?:is|(?:would|should|must)\s+be))?"
    one = (
        rf"[\s*\[(\"]*([{names}])(?![\w'’]|-\w)(?!(?<=A)(?<!ption A)(?<!hoice A)"
        r"\s+(?!(?:and|as|because|but|for|is|not|or|since)\b)[a-z])"
        rf"(?:\W{{0,3}}(?:/|or\b|and\b)\s?(?:{word}\s)?\W{{0,2}}([{names}])(?![\w'’]|\s[a-z]))?"
    )
    answers = re.findall(rf"(?i:answer|selection)[\"*]*{is_}\s*[:=]?\s*(?:{word})?{one}", reply)
    if answers:
        first, second = answers[-1]
        return first if second in ("", first) else None
    lower = names[1:].lower()  # "answer: c", but never "a"
    small = re.findall(rf"(?i:answer|selection)(?:\sis\s|\s?[:=])\s?\(?([{lower}])(?!\w)", reply)
    if small:
        return small[-1].upper()
    named = re.finditer(rf"{word}{is_}\s*[:=]?{one}(?!\W*is\s+(?:not|wrong|incorrect))", reply)
    left = {letter for m in named if not DENIED.search(before(reply, m)) for letter in m.groups()}
    left -= {None}
    if left:
        return left.pop() if len(left) == 1 else None
    drawn = re.finditer(rf"\b(?i:therefore|thus|hence|so|choose|select|pick)[,:]?\s{one}", reply)
    right = r"\sis\s(?:the\s)?(?i:correct|right|best)\b"
    said = re.finditer(rf"(?<![\w'’-])([{names}]){right}", reply)
    left = {m[1] for m in (*drawn, *said) if not DENIED.search(before(reply, m))}
    if left:
        return left.pop() if len(left) == 1 else None
    first_line = whole.strip().partition("\n")[0]
    opening = re.match(rf"[\s*\[(]*([{names}])(?:[\s*\])]*$|[\s*]*[.:)\]])", first_line)
    return opening[1] if opening and not repeats_options(whole, names) else None


def repeats_options(reply, names):
    """Does a reply begin with all options in order, "A. .. B. .. C. .."? That is no choice."""
    lines = re.sub(rf"\s(?=[{names}][.:)])", "\n", reply)
    found = re.findall(rf"(?m)^[*\[( ]{{0,9}}([{names}])(?:\*{{0,2}}[.:)\]]| *$)", lines)
    return found[: len(names)] == [*names]


# Short texts ---------------------------------------------------------------------------------


def plain(text):
    """Lower case without punctuation, articles and double spaces (SQuAD's normalisation).

    Where that leaves nothing (a blood type "A+", a sign "*") the text itself, in lower case.
    """
    words = "".join(c for c in text.lower() if c not in string.punctuation)
    words = re.sub(r"\b(a|an|the)\b", " ", words).split()
    return " ".join(words or text.lower().split())


def exact_match(reply, answer):
    """Equality up to white space: the sample world's answers must keep the asked format."""
    return reply.split() == answer.split()


# The final answer of a solution, in whatever words it is given -------------------------------

ANSWER = re.compile(
    r"\[\[((?:(?!\[\[|\]\]).)+)\]\]|\\boxed\{([^{}]+)\}|^####\s*(\S.*)$"
    r"|\banswer\s*(?:is\b(?:\s*:)?|:|=)\s*(\S.*?)(?=\.(?:\s|$)|$)",
    re.I | re.M,
)
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+")


def bare(text):
    """Lower case without brackets, quotes, currency signs and the full stop around it."""
    around = " \t\n[](){}*$€£\"'`."
    text = text.casefold().rstrip(around)
    inner = text.lstrip(around)
    point = inner[:1].isdigit() and text.endswith("." + inner)  # ".5" is not "5"
    return " ".join(("." * point + inner).split())


BARE_WORDS = 3  # a longer reply without a mark is reasoning, not an answer


def final_answers(text):
    """{plain form: words} of the different final answers that a solution marks as such."""
    found = [next(group for group in m.groups() if group) for m in ANSWER.finditer(text)]
    return {bare(answer): answer.strip() for answer in found}


def final_answer(text):
    """The final answer a solution commits itself to; None if there is none or more than one.

    A reply of a few words and no mark is itself the answer: a label, a number, a name.
    """
    found = final_answers(text)
    if not found and len(text.split()) <= BARE_WORDS and not re.search(r"boxed|[#:\[]", text):
        return text.strip() or None
    return found.popitem()[1] if len(found) == 1 else None


def same_answer(final, reference):
    """Whether two final answers agree: as numbers, as option letters, else as plain text."""
    final, reference = bare(final), bare(reference)
    numbers = [NUMBER.findall(text) for text in (final, reference)]
    if NUMBER.fullmatch(reference.rstrip("% ")):
        a, b = ([float(number.replace(",", "")) for number in found] for found in numbers)
        return len(a) == 1 and math.isclose(a[0], b[0], rel_tol=1e-9)
    if re.fullmatch(r"[a-j]", reference):
        letter = re.match(r"([a-j])(?:[).:,\]]|$)", final)
        return bool(letter) and letter[1] == reference
    return final == reference


def judged_by_rule(text, answer):
    """{"final", "correct"} of a solution, by comparing its one final answer with the reference's.
    Without a reference "correct" is None."""
    final = final_answer(text)
    right = final is not None and same_answer(final, answer) if answer else None
    return {"final": final, "correct": right}


# Worked exam solutions: `Step 1: ... Step 2: ... Answer: 40` ---------------------------------


def exam_answer(text):
    """What follows `Answer:`, up to the end of the sentence; None if absent or contradicted."""
    parts = re.split(r"\banswer\s*:", text, flags=re.I)[1:]
    values = {re.split(r"\n|\s\.|\.\s|\.$", part.strip(), maxsplit=1)[0].strip() for part in parts}
    return values.pop() or None if len(values) == 1 else None


def exam_right(text, answer):
    """Is the final answer right? Numbers by value, anything else by its words."""
    given = exam_answer(text)
    if given is None:
        return False
    try:
        return float(given.replace(",", "")) == float(answer.replace(",", ""))
    except ValueError:
        return plain(given) == plain(answer)


def exam_steps(text):
    """[(number, body)] of the `Step k:` parts, white space, case and full stops evened out."""
    body = re.split(r"\banswer\s*:", text, maxsplit=1, flags=re.I)[0]
    _, *parts = re.split(r"\bstep\s+(\d+)\s*:", body, flags=re.I)
    bodies = [" ".join(part.split()).rstrip(" .").lower() for part in parts[1::2]]
    return list(zip(map(int, parts[::2]), bodies, strict=True))


def exam_process_right(text, solution, answer):
    """Every step equals the reference's, none is missing or added, and the answer is right."""
    return exam_right(text, answer) and exam_steps(text) == exam_steps(solution)
