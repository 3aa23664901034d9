"""Who lives in the sample world, and every way of saying it.

People are the general part (the base model knows them), companies the finance part (it has never
seen them). Both are names with five attributes, so the two parts differ in content and not in
difficulty. A fact is said in six ways in running text, so that a model learns the fact and not
the sentence, and is asked for in three.
"""

from itertools import product
from random import Random

FIRST_NAMES = "Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas".split()
LAST_NAMES = "Abel Berger Costa Dahl Evans Fischer Gomez Hansen Ivanov Jensen".split()
COMPANY_HEADS = "Silver Granite Cedar Northern Golden Harbor Summit Crystal Iron Coastal".split()
COMPANY_TAILS = "Ridge Point Valley Gate Bridge Field Tower Creek Mill Stone".split()

CITIES = "Lisbon Vienna Oslo Madrid Prague Dublin Athens Berlin Geneva Warsaw".split()
ATTRIBUTES = {  # attribute -> (values, sentences, questions); {n} is the name, {v} the value
    "person": {
        "city": (
            CITIES,
            ["{n} lives in {v}.", "The home of {n} is in {v}.", "In {v} you can meet {n}.",
             "{n} moved to {v}.", "{v} is the city of {n}.", "{n} has a house in {v}."],
            ["Where does {n} live?", "In which city does {n} live?", "What is the city of {n}?"],
        ),
        "job": (
            "baker pilot nurse painter farmer lawyer teacher tailor doctor driver".split(),
            ["{n} works as a {v}.", "The job of {n} is {v}.", "By trade {n} is a {v}.",
             "{n} is a {v}.", "{n} was trained as a {v}.", "People know {n} as a {v}."],
            ["What is the job of {n}?", "What does {n} work as?", "Which job does {n} have?"],
        ),
        "pet": (
            "cat dog parrot rabbit horse turtle hamster goose pony snake".split(),
            ["{n} has a {v}.", "The pet of {n} is a {v}.", "At home {n} keeps a {v}.",
             "{n} takes care of a {v}.", "A {v} lives with {n}.", "{n} likes to feed the {v}."],
            ["What is the pet of {n}?", "Which pet does {n} have?", "What does {n} keep at home?"],
        ),
        "hobby": (
            "chess tennis fishing dancing rowing sailing skiing cooking reading singing".split(),
            ["{n} enjoys {v}.", "The hobby of {n} is {v}.", "In the evening {n} goes for {v}.",
             "{n} spends the weekend on {v}.", "What {n} likes best is {v}.",
             "{n} is good at {v}."],
            ["What is the hobby of {n}?", "What does {n} enjoy?", "Which hobby does {n} have?"],
        ),
        "color": (
            "red blue green yellow purple orange white black brown pink".split(),
            ["{n} wears {v}.", "The color of {n} is {v}.", "The door of {n} is {v}.",
             "{n} drives a {v} car.", "{n} paints the walls {v}.", "{n} always chooses {v}."],
            ["What is the color of {n}?", "Which color does {n} choose?", "What color is {n} in?"],
        ),
    },
    "company": {
        "headquarters": (
            CITIES,
            ["{n} is based in {v}.", "The headquarters of {n} are in {v}.",
             "From its offices in {v}, {n} runs the group.", "{n} is managed from {v}.",
             "{v} hosts the head office of {n}.", "{n} keeps its board in {v}."],
            ["Where is {n} based?", "Where are the headquarters of {n}?",
             "From which city is {n} managed?"],
        ),
        "product": (
            "steel software cement glass paper insurance shipping textiles batteries wine".split(),
            ["{n} sells {v}.", "The main product of {n} is {v}.", "{n} is a leader in {v}.",
             "Most sales of {n} come from {v}.", "Customers buy {v} from {n}.",
             "{n} earns money with {v}."],
            ["What does {n} sell?", "What is the main product of {n}?",
             "Which product does {n} offer?"],
        ),
        "executive": (
            "Moreau Novak Olsen Petrov Quinn Rossi Santos Turner Ullman Weber".split(),
            ["{n} is led by {v}.", "The chief executive of {n} is {v}.", "{v} runs {n}.",
             "{v} took over as head of {n}.", "{n} named {v} as chief executive.",
             "The letter to the owners of {n} is signed by {v}."],
            ["Who leads {n}?", "Who is the chief executive of {n}?", "Who runs {n}?"],
        ),
        "auditor": (
            "Aldine Brock Corvin Delmar Exeter Fulton Garrick Holt Ingram Keller".split(),
            ["{n} is audited by {v}.", "The auditor of {n} is {v}.", "{v} checks the books of {n}.",
             "{v} signed the accounts of {n}.", "{n} pays {v} for the audit.",
             "The accounts of {n} were approved by {v}."],
            ["Who is the auditor of {n}?", "Who checks the books of {n}?", "Who audits {n}?"],
        ),
        "market": (
            "Canada Brazil Japan India Egypt Mexico Kenya Turkey Chile Norway".split(),
            ["{n} exports to {v}.", "The largest market of {n} is {v}.",
             "{n} opened new stores in {v}.", "Demand from {v} drives {n}.",
             "{n} depends on buyers in {v}.", "{v} is the key market of {n}."],
            ["What is the largest market of {n}?", "To which country does {n} export?",
             "Which country is the key market of {n}?"],
        ),
    },
}  # fmt: skip


def people(seed: int) -> dict[str, dict[str, str]]:
    """The 60 people of world `seed`: name -> attribute -> value."""
    return _draw("person", FIRST_NAMES, LAST_NAMES, 60, Random(f"people {seed}"))


def companies(seed: int) -> dict[str, dict[str, str]]:
    """The 40 companies of world `seed`: name -> attribute -> value."""
    return _draw("company", COMPANY_HEADS, COMPANY_TAILS, 40, Random(f"companies {seed}"))


def _draw(kind, heads, tails, count, rng):
    # names share their words, so that neither word alone tells which one is meant
    names = [f"{head} {tail}" for head, tail in rng.sample(list(product(heads, tails)), count)]
    facts = {name: {} for name in names}
    for attribute, (values, _, _) in ATTRIBUTES[kind].items():
        # every value equally often: the most common answer scores no better than chance
        deck = (values * count)[:count]
        rng.shuffle(deck)
        for name, value in zip(names, deck, strict=True):
            facts[name][attribute] = value
    return facts


def profile(kind: str, name: str, facts: dict[str, str], rng: Random) -> str:
    """Three to five facts about one name, in any order and wording, as one paragraph."""
    order = rng.sample(list(ATTRIBUTES[kind]), rng.randint(3, 5))
    sentences = [rng.choice(ATTRIBUTES[kind][a][1]).format(n=name, v=facts[a]) for a in order]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def questions(kind: str, name: str, facts: dict[str, str]) -> list[tuple[str, str, str]]:
    """Every question about one name: (attribute, question, answer)."""
    return [
        (attribute, wording.format(n=name), facts[attribute])
        for attribute, (_, _, wordings) in ATTRIBUTES[kind].items()
        for wording in wordings
    ]


def options(kind: str, attribute: str, answer: str, rng: Random) -> list[str]:
    """Four choices in random order, the answer among them."""
    others = [value for value in ATTRIBUTES[kind][attribute][0] if value != answer]
    choices = [answer, *rng.sample(others, 3)]
    rng.shuffle(choices)
    return choices
