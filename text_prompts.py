"""What a judge is asked about a text, and the form its reply must have: curate.py's two kinds.

    quality    how much would a student of finance learn?  -> Score, 0 to 5
    exercises  which exercises does the passage hold?      -> lists of equal length, word for word

The criteria and the keys are those of FinDAP (arXiv:2501.04961, appendix D); the words are not.
judge.py reads the json; the form of the values is checked here.
"""

QUALITY = """\
Below is a text from a book or a web page; [...] marks where something was left out. How good \
would it be as material for students of finance?

<passage>
{answer}
</passage>

Begin at 0 and add one point for each of these that holds, each judged for itself:
- It teaches: somebody who studies finance learns something from it, even if parts of it are \
beside the point.
- It is about finance: most of it explains financial ideas, methods, markets or institutions, and \
is no advertisement, list of links or table of contents.
- It is coherent: the thoughts follow one another, the language is clear, and little is repeated, \
torn off or garbled.
- It fits a course: its level is that of a textbook for students, and it holds exercises or worked \
examples together with their solutions.
- Its reasoning is outstanding: it shows step by step why something holds or how a result is \
reached, deeply and without a mistake.
Reply with one JSON object and nothing else:
{{"Justification": "<which points it earns and why, at most 100 words>", \
"Score": <a whole number from 0 to 5>}}"""

EXERCISES = """\
Below is a passage of a book. Copy out every exercise of it whose answer the passage gives as \
well: questions to calculate, to explain or to choose from, worked examples included.

<passage>
{answer}
</passage>

Copy character by character. Do not solve, shorten, complete, correct or translate anything, and \
leave out an exercise that is cut off or whose answer you would have to find yourself.
Reply with one JSON object and nothing else. Five of its keys hold lists with one entry for each \
exercise, in the order of the passage; all five are empty if there is none:
"Questions": the question itself.
"Scenario": the case or text that the question builds on, also where several questions share it; \
"" if there is none.
"Exhibit": the table or data that the question refers to; "" if there is none.
"Answer Choices": a list of the choices, each with its letter; "" if there are none to choose from.
"Answer": the answer as the passage gives it, of a choice its letter alone.
One more key:
"Justification": at most 100 words: where the exercises and where their answers stand."""

TEXT_PROMPTS = {"quality": QUALITY, "exercises": EXERCISES}
LISTS = ("Questions", "Scenario", "Exhibit", "Answer Choices", "Answer")
TEXT_KEYS = {"quality": {"Justification", "Score"}, "exercises": {"Justification", *LISTS}}


def strings(value):
    """All strings of a parsed reply."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inside for text in strings(part)]


def misfit(parsed, kind):
    """Why a value of a reply that has the keys of its kind is not what is due, or None."""
    plain = parsed.values() if kind not in TEXT_KEYS else [parsed["Justification"]]
    if not all(isinstance(value, str) for value in plain):
        return "reply has a value that is not plain text"
    if kind not in TEXT_KEYS:
        return None
    if kind == "quality":
        if type(parsed["Score"]) is not int or not 0 <= parsed["Score"] <= 5:
            return "Score is not a whole number from 0 to 5"
        return None
    lists = [parsed[name] for name in LISTS]
    if not all(isinstance(found, list) for found in lists):
        return "reply has something else where a list is due"
    if len({len(found) for found in lists}) > 1:
        return "lists of unequal length"
    for name, found in zip(LISTS, lists, strict=True):
        for entry in found:
            parts = entry if name == "Answer Choices" and isinstance(entry, list) else [entry]
            if not all(isinstance(part, str) for part in parts):
                return "a list holds something else than text"
    return None
