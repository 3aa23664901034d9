"""Passages of a book, and where in them the words of an exercise stand: pure functions.

    for start, end in passages(text, 8000): ...
    place, reason = place_of(text[start:end], exercise)

A judge's word is not taken for anything. What it quotes must stand in the passage that it was
shown, and the answer once more than in the question and its choices: behind the question, and a
single letter only where the text gives it as an answer ("Answer: B", "12. B", "B is correct").
"""

import re
from dataclasses import dataclass

from judge import quoted, shield

BORDER = re.compile(r"\n[^\S\n]*\n\s*")  # between paragraphs
SHARED = 4  # the last 1/4 of a passage, at most, is the beginning of the next one, too
HEADING = re.compile(
    r"\W*(?:chapter|exercises|problems|questions|quiz|practice|review|self-test)\b"
    r"[^\n]{0,60}(?<![.,;?!])[^\S\n]*(?:\n|\Z)", re.I
)  # fmt: skip
LABEL = re.compile(r"(?<!\w)[(\[]?([A-Za-z])[.):\]]+(?=\s|\Z)")  # of a choice: A. (b) C)
LABEL_BEFORE = re.compile(r"(?<!\w)[(\[]?([A-Za-z])[.):\]]+\s*\Z")
NUMBER = re.compile(r"(?<![\w.])(\d{1,3})[.):]?\s*\Z")  # right before a question
SAYS = r"\b(?i:answers?|ans|solution|key|correct)\b"
MORE = rf"(?:[^\S\n]|[:.=*–—-]|{SAYS}|\b(?i:the|choice|option|response|letter|is|was)\b){{0,12}}"
# Behind the letter: a mark, the end of the line, a bracket, the next of a row (1. B 2. C), a verb;
# no other word, as "a" and "A" are words themselves
ENDS = (r"(?!\w)(?=[)\]]?(?:[.,;:](?:\s|\Z)|\s*(?:\Z|\n|\()|\s+\d{1,3}[.):-]*\s*[(\[]?[A-Za-z]\b"
        r"|\s+(?:is|was|because|since)\b)|[)\]]\s)")  # fmt: skip


@dataclass
class Place:
    """Where an exercise stands in its passage: (start, end) each, None for what it has not."""

    question: tuple
    scenario: tuple | None
    exhibit: tuple | None
    choices: list
    answer: tuple  # of a letter the letter itself


# ---- passages -----------------------------------------------------------------------------------


def pieces(text, most):
    """(start, end) of the paragraphs; longer ones than `most` are cut at lines, or else anywhere
    between words."""
    spans, start = [], 0
    for end in [*(m.end() for m in BORDER.finditer(text)), len(text)]:
        while end - start > most:
            part = text[start : start + most]
            cut = part.rfind("\n") + 1 or part.rfind(" ") + 1 or most
            spans.append((start, start + cut))
            start += cut
        if end > start:
            spans.append((start, end))
        start = end
    return spans


def passages(text, most):
    """(start, end) of passages of at most `most` characters, which cover the text.

    A passage ends before a heading in its second half, if there is one, the last; otherwise it ends
    with a paragraph, and its last paragraphs come again in the next passage: what stands across the
    border is whole in one of the two.
    """
    spans = pieces(text, most // SHARED)
    found, first = [], 0
    while first < len(spans):
        start, last = spans[first][0], first
        while last < len(spans) and spans[last][1] - start <= most:
            last += 1
        following = last
        if last < len(spans):
            late = [i for i in range(first + 1, last) if spans[i][0] - start > most // 2]
            heads = [i for i in late if HEADING.match(text[slice(*spans[i])])]
            if heads:
                last = following = heads[-1]
            else:
                end = spans[last - 1][1]
                while following > first + 1 and end - spans[following - 1][0] <= most // SHARED:
                    following -= 1
        span = start, spans[last - 1][1]
        if text[slice(*span)].strip():
            found.append(span)
        first = following
    return found


# ---- the words of an exercise -------------------------------------------------------------------


def find_all(text, quote):
    """(start, end) of every place where a text holds a quote."""
    begin = r"(?<!\d[.,])" if quote[:1].isdigit() else ""
    return [m.span() for m in re.finditer(begin + quoted(quote), text)]


def find(text, quote, behind=0):
    """The first of these places behind another one, or else the first of all; None if none."""
    places = find_all(text, quote)
    return next((span for span in places if span[0] >= behind), places[0] if places else None)


def place_of(passage, exercise):
    """(Place, None), or (None, why the exercise is not taken).

    exercise: what the judge says, its fields named by their columns; choices are a list.
    """
    text, spans, behind = shield(passage), {}, 0
    said = {name: shield(exercise[name]).strip() for name in ("scenario", "exhibit", "questions")}
    answer = shield(exercise["answer"]).strip()
    choices = [choice for said in exercise["answer_choices"] if (choice := shield(said).strip())]
    for name, quote in said.items():
        spans[name] = find(text, quote, behind) if quote else None
        if quote and not spans[name]:
            return None, f"{name} not in the source"
        behind = spans[name][0] if quote else behind
    if not said["questions"]:
        return None, "without a question"
    if not answer:
        return None, "without an answer"
    behind, chosen, labels = spans["questions"][1], [], {}
    for choice in choices:
        if not (span := find(text, choice, behind)):
            return None, "answer_choices not in the source"
        behind = span[1]
        span = with_label(text, span)
        chosen.append(span)
        labels |= labels_of(text[slice(*span)])
    taken = [*filter(None, spans.values()), *chosen]
    span, reason = answer_of(text, answer, spans["questions"], taken, labels)
    if reason:
        return None, reason
    return Place(spans["questions"], spans["scenario"], spans["exhibit"], chosen, span), None


def with_label(text, span):
    """A choice's place with the letter before it, which a judge may leave out."""
    if LABEL.match(text[slice(*span)]):
        return span
    before = LABEL_BEFORE.search(text[max(0, span[0] - 8) : span[0]])
    return (span[0] - len(before[0]), span[1]) if before else span


def labels_of(choice):
    """{letter: what it stands for} of a choice, or of all choices in one text."""
    marks = []
    for mark in LABEL.finditer(choice) if LABEL.match(choice) else ():
        if not marks or ord(mark[1].upper()) == ord(marks[-1][1].upper()) + 1:
            marks.append(mark)  # and no letter within the text
    ends = [*(mark.start() for mark in marks[1:]), len(choice)]
    return {mark[1].upper(): " ".join(choice[mark.end() : end].split())
            for mark, end in zip(marks, ends, strict=False)}  # fmt: skip


def answer_of(text, answer, question, taken, labels):
    """(place, None) of the answer behind a question, or (None, why it is none)."""
    bare = re.fullmatch(r"[(\[]?([A-Za-z])[.):\]]*", answer)
    if bare:
        if bare[1].upper() not in labels:
            return None, "answer is the letter of no choice"
        span = given(text, bare[1], question, taken)
        return span, None if span else "answer not given as one in the source"
    places = find_all(text, answer)
    if not places:
        return None, "answer not in the source"
    for span in places:
        if span[0] >= question[1] and not inside(span, taken):
            return span, None
    words = " ".join(answer.split())
    words = words[m.end() :].strip() if (m := LABEL.match(words)) else words
    for letter, choice in labels.items():
        if words == choice and given(text, letter, question, taken):
            return places[0], None
    return None, "answer not given as one in the source"


def inside(span, taken):
    return any(start < span[1] and span[0] < end for start, end in taken)


def given(text, letter, question, taken):
    """The first place behind a question that gives a letter as an answer, or None. A numbered one
    must have the question's number, where that has one."""
    own = NUMBER.search(text[max(0, question[0] - 8) : question[0]])
    own = own or re.match(r"\W*(\d{1,3})[.):]\s", text[slice(*question)])
    x = rf"[(\[]?([{letter.upper()}{letter.lower()}]){ENDS}"
    alone = r"(?=[.)\]]*[^\S\n]*(?:\n|\Z)|[)\]]?\s+is\b)"
    for match in re.finditer(
        rf"{SAYS}{MORE}{x}"  # The correct answer is B
        rf"|{SAYS}[^\S\n]*[:.]?[^\S\n]*\n\s*{x}{alone}"  # Answer, and in the next line: B
        rf"|(?<![\w.,])(\d{{1,3}})(?:[.):-]\s*|\s+){x}"  # 12. B
        rf"|(?<!\w){x}(?=[)\]]?\s+is\s+(?:the\s+)?(?:correct|right|best)\b)",  # B is correct
        text,
    ):
        number, which = match[3], next(i for i in (1, 2, 4, 5) if match[i])
        if number and own and int(number) != int(own[1]):
            continue
        if match.start(which) >= question[1] and not inside(match.span(which), taken):
            return match.span(which)
    return None
