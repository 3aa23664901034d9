import json
from pathlib import Path

import numpy as np
import pytest
from runs import run, series, torchrun, weights, write_data
from test_data import ask
from tiny import sentences, write_rows, write_tokenizer

from config import UserError
from data import load_chat, load_text
from metrics import read_metrics
from mixture import load_mixture, mix, print_mixed, read_mixture
from tokenizer import Tokenizer

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    write_tokenizer(path := tmp_path_factory.mktemp("tokenizer"))
    return Tokenizer(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: path} of two files of texts and one of chats, of unequal sizes."""
    out = tmp_path_factory.mktemp("files")
    rows = {"web": [{"text": t} for t in sentences(400, 1, 5, 60)],
            "books": [{"text": t} for t in sentences(40, 2, 5, 90)],
            "chats": [ask(t, "one two") for t in sentences(80, 3)]}  # fmt: skip
    return {name: write_rows(out / f"{name}.jsonl", part) for name, part in rows.items()}


def source(files, name, share=None, **more):
    found = {"name": name, "kind": "chat" if name == "chats" else "text", "files": [files[name]]}
    return found | ({} if share is None else {"share": share}) | more


def write(path, *groups, **more):
    path = path / "mixture.json"
    groups = [g if isinstance(g, dict) else {"sources": g} for g in groups]
    path.write_text(json.dumps({"groups": groups} | more))
    return str(path)


def load(path, tokenizer, seed=0):
    return load_mixture(path, tokenizer, 96, 0.05, "", seed)


def amounts(mixed, unit="tokens"):
    """{name: tokens or rows} of a mixture, counted from the families themselves."""
    sizes = mixed.families.sizes if unit == "tokens" else np.ones(len(mixed.families))
    return {name: sizes[mixed.sources == i].sum() for i, name in enumerate(mixed.names)}


# ---- shares


@pytest.mark.parametrize("unit", ["tokens", "rows"])
def test_every_source_gets_its_share_in_tokens_or_in_rows(files, tokenizer, tmp_path, unit):
    shares = {"web": 0.5, "books": 0.2, "chats": 0.3}
    sources = [source(files, name, share) for name, share in shares.items()]
    mixed = load(write(tmp_path, sources, unit=unit), tokenizer)
    found = amounts(mixed, unit)
    for name, share in shares.items():
        assert found[name] / sum(found.values()) == pytest.approx(share, abs=0.01)
    other = amounts(mixed, "rows" if unit == "tokens" else "tokens")
    assert abs(other["web"] / sum(other.values()) - 0.5) > 0.02  # the other unit is no share


def test_without_a_total_the_scarcest_source_is_used_up_and_nothing_is_repeated(
    files, tokenizer, tmp_path
):
    sources = [source(files, "web", 0.5), source(files, "books", 0.5)]
    mixed = load(write(tmp_path, sources), tokenizer)
    books, _ = load_text(files["books"], tokenizer, 96)
    assert amounts(mixed)["books"] == books.sizes.sum()
    assert len(np.unique(mixed.families.which)) == len(mixed.families)


def test_repeats_are_whole_passes_and_a_part_by_chance(files, tokenizer, tmp_path):
    books, _ = load_text(files["books"], tokenizer, 96)
    total = 5 * int(books.sizes.sum())  # half of it: two and a half passes
    sources = [source(files, "web", 0.5), source(files, "books", 0.5, repeats=3)]
    mixed = load(write(tmp_path, {"total": total, "sources": sources}), tokenizer)
    assert mixed.passes[0]["books"] == pytest.approx(2.5)
    _, counts = np.unique(mixed.families.which[mixed.sources == 1], return_counts=True)
    assert set(counts.tolist()) == {2, 3} and len(counts) == len(books)
    assert amounts(mixed)["books"] / total == pytest.approx(0.5, abs=0.01)


def test_without_shares_everything_is_taken_as_often_as_it_says(files, tokenizer, tmp_path):
    sources = [source(files, "web"), source(files, "chats", repeats=2)]
    mixed = load(write(tmp_path, sources), tokenizer)
    web, _ = load_text(files["web"], tokenizer, 96)
    chats, _ = load_chat(files["chats"], tokenizer, 96)
    assert amounts(mixed) == {"web": web.sizes.sum(), "chats": 2 * chats.sizes.sum()}


def test_the_choice_depends_on_the_seed_alone(files, tokenizer, tmp_path):
    path = write(tmp_path, [source(files, "web", 0.5), source(files, "books", 0.5)])
    a, b, c = (load(path, tokenizer, seed).families.which.tolist() for seed in (0, 0, 1))
    assert a == b != c


def test_groups_follow_each_other_and_a_name_means_the_same_source_in_both(
    files, tokenizer, tmp_path
):
    first = [source(files, "web", 0.5), source(files, "chats", 0.5)]
    second = [source(files, "books", 0.5), source(files, "chats", 0.5)]
    mixed = load(write(tmp_path, first, second), tokenizer)
    assert mixed.names == ["web", "chats", "books"]
    assert sum(mixed.groups) == len(mixed.families)
    early, late = np.split(mixed.sources, [mixed.groups[0]])
    assert set(early.tolist()) == {0, 1} and set(late.tolist()) == {2, 1}
    assert mixed.families.sizes[-1] > 0 and len(mixed.families[len(mixed.families) - 1]) == 1


def test_shares_in_tokens_and_in_rows_are_printed_by_group(files, tokenizer, tmp_path, capsys):
    sources = [source(files, "web", 0.75), source(files, "chats", 0.25)]
    mixed = load(write(tmp_path, sources, sources), tokenizer)
    capsys.readouterr()
    print_mixed(mixed)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["group", "source", "passes", "rows", "tokens", "trained"]
    assert [line.split()[:2] for line in lines] == [["1", "web"], ["1", "chats"],
                                                    ["2", "web"], ["2", "chats"]]  # fmt: skip
    cells = lines[0].split()
    here = slice(0, mixed.groups[0])
    web = mixed.sources[here] == 0
    tokens = mixed.families.sizes[here][web].sum()
    assert cells[3] == f"{web.sum():,}" and cells[4] == f"{web.mean():.1%}"
    assert cells[5] == f"{tokens:,}"
    assert cells[6] == f"{tokens / mixed.families.sizes[here].sum():.1%}"


# ---- bad mixtures


def test_a_total_beyond_a_source_says_which_and_what_to_do(files, tokenizer, tmp_path):
    sources = [source(files, "web", 0.5), source(files, "books", 0.5)]
    path = write(tmp_path, {"total": 20_000, "sources": sources})
    reason = (
        r"mixture.json: groups\[0\].sources\[1\]: share: 0.5 of 20,000 tokens are 10,000, but "
        r"books holds [\d,]+: set its repeats to 6, or total to 3690"
    )
    with pytest.raises(UserError, match=reason):
        load(path, tokenizer)
    with pytest.raises(UserError, match="set its repeats to 2, or total to 3690"):
        load(write(tmp_path, {"total": 3_700, "sources": sources}), tokenizer)
    assert load(write(tmp_path, {"total": 3690, "sources": sources}), tokenizer)
    sources[1]["repeats"] = 6
    assert load(write(tmp_path, {"total": 20_000, "sources": sources}), tokenizer)


def test_a_share_that_whole_rows_cannot_meet_is_an_error(files, tokenizer, tmp_path):
    sources = [source(files, "web", 0.5), source(files, "chats", 0.5)]
    path = write(tmp_path, {"total": 150, "sources": sources})
    with pytest.raises(UserError, match=r"would be [\d.]+%, not 50.0%: the mixture is too small"):
        load(path, tokenizer)


def test_a_source_too_small_a_share_to_get_a_row_is_an_error(files, tokenizer, tmp_path):
    sources = [source(files, "web", 0.996), source(files, "books", 0.004)]
    path = write(tmp_path, {"total": 3000, "sources": sources})
    with pytest.raises(UserError, match=r"books would be 0.0%, not 0.4%"):
        load(path, tokenizer)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"share": 0.4}, r"groups\[0\]: share: together 0.9, must be 1"),
        ({"share": 0}, r"sources\[0\]: share: must be above 0, not 0"),
        ({"share": "half"}, r"sources\[0\]: share: must be a number, not a string"),
        ({"share": None}, r"sources\[0\]: share: must be a number, not null"),
        ({"repeats": -1}, r"sources\[0\]: repeats: must be above 0, not -1"),
        ({"weight": 1}, r"sources\[0\]: unknown key 'weight'"),
        ({"shares": 1}, r"sources\[0\]: unknown key 'shares'; did you mean share\?"),
        ({"kind": "pair"}, r"sources\[0\]: kind: 'pair' is not text or chat"),
        ({"files": []}, r"sources\[0\]: files: is empty"),
        ({"files": "web.jsonl"}, r"sources\[0\]: files: must be a list, not a string"),
        ({"files": [3]}, r"sources\[0\]: files\[0\]: must be the path of a file"),
        ({"files": ["$NOWHERE_SET/web.jsonl"]}, r"\$NOWHERE_SET/web.jsonl: is not set in the env"),
        ({"files": ["a", "a"]}, r"sources\[0\]: files: one is there twice"),
        ({"name": "chats"}, r"sources\[1\]: name: chats is of another kind too"),
        ({"name": ""}, r"sources\[0\]: name: is empty"),
    ],
)
def test_a_bad_source_is_named_by_its_place_and_key(files, tmp_path, change, reason):
    sources = [source(files, "web", 0.5) | change, source(files, "chats", 0.5)]
    with pytest.raises(UserError, match=f"mixture.json: groups.*{reason}|{reason}"):
        read_mixture(write(tmp_path, sources))


def test_other_bad_mixtures(files, tmp_path):
    web, chats = source(files, "web", 1.0), source(files, "chats")
    for groups, more, reason in (
        ([[web]], {"unit": "words"}, "unit: 'words' is not tokens or rows"),
        ([[web]], {"sources": []}, "unknown key 'sources'"),
        ([], {}, "groups: is empty"),
        ([[web, chats]], {}, "share: chats has none"),
        ([[web | {"share": 0.5}] * 2], {}, "a name is there twice"),
        ([{"sources": [web], "total": 0}], {}, "total: must be above 0, not 0"),
        ([{"sources": [web], "total": float("inf")}], {}, "total: must be above 0, not inf"),
        ([{"sources": [chats], "total": 9}], {}, "total: needs shares"),
        ([{"sources": ["web"]}], {}, r"sources\[0\]: must be an object, not a string"),
        ([{"total": 3}], {}, "sources: missing"),
    ):
        with pytest.raises(UserError, match=reason):
            read_mixture(write(tmp_path, *groups, **more))


def test_an_empty_source_is_named(files, tokenizer, tmp_path):
    empty = write_rows(tmp_path / "empty.jsonl", [])
    sources = [source(files, "web", 0.5), source(files, "books", 0.5) | {"files": [empty]}]
    with pytest.raises(UserError, match="empty.jsonl: holds no rows"):
        load(write(tmp_path, sources), tokenizer)


@pytest.mark.parametrize("name", ["group1.json", "group2.json"])
def test_the_paper_s_groups_are_half_text_half_instructions(name, monkeypatch):
    monkeypatch.setenv("DATA", "somewhere")
    (group,) = read_mixture(RECIPES / name)["groups"]
    share = {"text": 0, "chat": 0}
    for part in group["sources"]:
        share[part["kind"]] += part["share"]
        assert all(file.startswith("somewhere/") for file in part["files"])
    assert share == pytest.approx({"text": 0.5, "chat": 0.5})


def test_the_paper_s_first_group_has_its_shares_of_finance(monkeypatch):
    monkeypatch.setenv("DATA", "somewhere")
    (group,) = read_mixture(RECIPES / "group1.json")["groups"]
    finance = {"text": 0, "chat": 0}
    for part in group["sources"]:
        finance[part["kind"]] += part["share"] * part["name"].startswith("finance")
    assert finance == pytest.approx({"text": 0.25, "chat": 0.1})  # 50% and 20% of their halves


# ---- text and chats, by flags


def loaded(tokenizer, files):
    text, _ = load_text(files["web"], tokenizer, 96)
    return text, load_chat(files["chats"], tokenizer, 96)[0]


def test_mixing_by_tokens_or_rows_samples_the_text_down_and_all_keeps_it(files, tokenizer):
    text, chat = loaded(tokenizer, files)
    kept = {}
    for how in ("tokens", "rows", "all"):
        mixed = mix(text, chat, how, seed=2)
        mine = mixed.sources == 0
        assert np.array_equal(mixed.families.sizes[~mine], chat.sizes)
        kept[how] = mixed.families.which[mine].tolist()
        assert kept[how] == sorted(set(kept[how]))  # in the order of the file, never repeated
    tokens = text.sizes[kept["tokens"]].sum()
    assert chat.sizes.sum() - text.sizes.max() < tokens <= chat.sizes.sum() < text.sizes.sum()
    assert len(kept["rows"]) == len(chat) != len(kept["tokens"])
    assert kept["all"] == list(range(len(text)))


def test_the_sample_of_the_text_depends_on_the_seed(files, tokenizer):
    text, chat = loaded(tokenizer, files)
    a, b, c = (mix(text, chat, "tokens", s).families.which.tolist() for s in (0, 0, 1))
    assert a == b != c


def test_text_that_is_smaller_than_its_budget_is_kept_whole(files, tokenizer):
    text, chat = loaded(tokenizer, files)
    for how in ("tokens", "rows"):
        assert len(mix(text[:5], chat, how, seed=0).families) == 5 + len(chat)
    assert len(mix(chat, chat, "tokens", seed=0).families) == 2 * len(chat)  # exactly the budget
    with pytest.raises(UserError, match="mix: 'half' is not"):
        mix(text, chat, "half", seed=0)


# ---- training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny checkpoint with rows, and a mixture of two groups over them."""
    out = write_data(tmp_path_factory.mktemp("data"))
    paths = {"web": f"{out}/text.jsonl", "chats": f"{out}/chat.jsonl"}
    first = [source(paths, "web", 0.7, repeats=2), source(paths, "chats", 0.3)]
    second = [source(paths, "web", 0.2), source(paths, "chats", 0.8)]
    write(out, first, second)
    return out


def train(data, out, **changes):
    return run("cpt", data, out, mixture=str(data / "mixture.json"), **changes)


def test_training_logs_loss_and_tokens_of_every_source_and_keeps_the_shares(data, tmp_path):
    rows = train(data, tmp_path / "out")
    tokenizer = Tokenizer(data / "base")
    mixed = load(str(data / "mixture.json"), tokenizer)
    wanted = amounts(mixed)
    assert {name: rows[-1][f"tokens/{name}"] for name in wanted} == wanted
    assert all(f"loss/{name}" in row for row in rows for name in wanted if row["step"] > 3)
    seen = [row.get("tokens/web", 0) / (row.get("tokens/web", 0) + row.get("tokens/chats", 0))
            for row in rows]  # fmt: skip
    half = next(i for i, row in enumerate(rows) if row["tokens/web"] > 0.9 * wanted["web"])
    assert 0 < half < len(rows) - 1 and seen[half] > seen[-1]  # first group first


def test_a_run_of_a_mixture_goes_on_where_it_was_and_on_any_number_of_ranks(data, tmp_path):
    whole = train(data, tmp_path / "whole")
    train(data, tmp_path / "part", stop_at=4)
    again = train(data, tmp_path / "part")
    names = ("step", "loss", "tokens/web", "tokens/chats")
    assert series(again, *names) == series(whole, *names)
    assert weights(tmp_path / "part") == weights(tmp_path / "whole")
    out = tmp_path / "two"
    job = {"stage": "cpt", "data": data, "out": out, "mixture": str(data / "mixture.json")}
    torchrun(2, tmp_path, [job])
    two = read_metrics(out)
    assert series(two, "step", *names[2:]) == series(whole, "step", *names[2:])
    losses = [[row["loss"] for row in rows] for rows in (two, whole)]
    assert np.allclose(*losses, rtol=1e-5)


def test_a_changed_mixture_is_another_run(data, tmp_path):
    train(data, tmp_path / "out", stop_at=2)
    text = (data / "mixture.json").read_text()
    try:
        (data / "mixture.json").write_text(text.replace("0.7", "0.6").replace("0.3", "0.4"))
        with pytest.raises(UserError, match="holds a run with other settings"):
            train(data, tmp_path / "out")
    finally:
        (data / "mixture.json").write_text(text)
