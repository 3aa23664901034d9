import json

import pytest
from saving import RUN, SIZES, contents, loaded, save, trained, write_as
from tiny import write_checkpoint

import resume
import states
from config import UserError

EMBEDDING, FILE = "weight.model.embed_tokens.weight", states.file_of(0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("states") / "base", **SIZES)


@pytest.fixture
def pair(folder):
    return trained(folder, 1)


@pytest.fixture
def spoil(tmp_path, pair):
    """A function that changes the manifest of step 6, behind a good step 3; what is then said."""
    save(tmp_path, 3, pair)
    file = save(tmp_path, 6, pair) / "manifest.json"
    good = file.read_text()

    def change(function):
        content = json.loads(good)
        function(content)
        file.write_text(json.dumps(content))
        return states.opened(file.parent)[1]

    return change


def renamed(name):
    def change(m):
        m["files"] = {name: m["files"][FILE]}
        for tensor in m["tensors"].values():
            tensor["rows"] = {name: tensor["rows"][FILE]}

    return change


def rows(value):
    return lambda m: m["tensors"][EMBEDDING]["rows"].update({FILE: value})


FLAWS = {
    "surprise: unknown": lambda m: m.update(surprise=1),
    "world: missing": lambda m: m.pop("world"),
    "is of step 7": lambda m: m.update(step=7),
    "is of step '6'": lambda m: m.update(step="6"),
    "is of step True": lambda m: m.update(step=True),
    "not those of 2 ranks": lambda m: m.update(world=2),
    "not those of 1.0 ranks": lambda m: m.update(world=1.0),
    "must be objects": lambda m: m.update(tensors=[]),
    "'../outside.safetensors' is not the name": renamed("../outside.safetensors"),
    "'/etc/passwd' is not the name": renamed("/etc/passwd"),
    "'state-00001-of-00001.bin' is not the name": renamed("state-00001-of-00001.bin"),
    "bytes or sha256 is none": lambda m: m["files"][FILE].update(bytes="many"),
    "must have bytes and sha256": lambda m: m["files"][FILE].pop("sha256"),
    "rows 1 to 385 where 0 is due": rows([1, 385]),
    "rows end at 384 of 385": rows([0, 384]),
    "rows end at 386 of 385": rows([0, 386]),
    "rows 0 to 0 where 0 is due": rows([0, 0]),
    "must be pairs of numbers": rows([0, 385, 385]),
    "rows: must be pairs": rows([0, 385.0]),
    "rows end at 0 of 385": lambda m: m["tensors"][EMBEDDING]["rows"].clear(),
    "is not among the files": lambda m: m["tensors"][EMBEDDING]["rows"].update(x=[0, 385]),
    "shape [0, 8] is none": lambda m: m["tensors"][EMBEDDING].update(shape=[0, 8]),
    "shape [-385, 8] is none": lambda m: m["tensors"][EMBEDDING].update(shape=[-385, 8]),
    "dtype 'object' is not one of": lambda m: m["tensors"][EMBEDDING].update(dtype="object"),
    "must have shape, dtype and rows": lambda m: m["tensors"][EMBEDDING].update(extra=1),
}


@pytest.mark.parametrize("said", FLAWS)
def test_a_manifest_that_is_none_is_passed_over_with_its_reason(
    said, folder, tmp_path, spoil, capsys
):
    problem = spoil(FLAWS[said])
    assert said in problem and problem.startswith("manifest.json: ") and "\n" not in problem
    assert loaded(tmp_path, folder)[0] == 3
    state = states.folder_of(tmp_path, 6)
    assert f"{state}: {problem}; going back to the state before it" in capsys.readouterr().out


def test_holes_and_overlaps_between_the_files_of_ranks_are_found(tmp_path, pair):
    write_as(tmp_path, contents(*pair), 2)
    content = json.loads((states.folder_of(tmp_path, 7) / "manifest.json").read_text())
    spans = content["tensors"][EMBEDDING]["rows"]
    assert spans == {states.file_of(0, 2): [0, 193], states.file_of(1, 2): [193, 385]}
    for change, said in (([194, 385], "rows 194 to 385 where 193"), ([192, 385], "rows 192 to")):
        spans[states.file_of(1, 2)] = change
        assert said in states.flaw(content, states.folder_of(tmp_path, 7))


def torn(text):
    return text[: len(text) // 2]


@pytest.mark.parametrize("change", [torn, lambda t: "", lambda t: "[]", lambda t: "[" * 100_000,
                                    lambda t: t.replace("6", "9" * 5000, 1)])  # fmt: skip
def test_a_torn_manifest_is_passed_over(change, folder, tmp_path, spoil):
    file = states.folder_of(tmp_path, 6) / "manifest.json"
    file.write_text(change(file.read_text()))
    assert states.opened(file.parent) == (None, "manifest.json is torn")
    assert loaded(tmp_path, folder)[0] == 3


def test_a_manifest_and_files_that_do_not_belong_together_are_passed_over(
    folder, tmp_path, spoil, capsys
):
    """Both whole, but of other shapes or names; and a file with more than the manifest tells of."""
    for change in (
        lambda m: m["tensors"][EMBEDDING].update(shape=[385, 9]),
        lambda m: m["tensors"].update({"weight.new": m["tensors"].pop(EMBEDDING)}),
        lambda m: m["tensors"].pop("exp_avg.model.norm.weight"),
    ):
        spoil(change)
        assert loaded(tmp_path, folder)[0] == 3
    said = capsys.readouterr().out
    assert f"does not hold the rows of {EMBEDDING}" in said and "does not hold" in said
    assert "holds exp_avg.model.norm.weight, of which manifest.json does not tell" in said


def test_a_state_of_another_model_or_another_run_is_refused(tmp_path, pair):
    save(tmp_path, 3, pair)
    other = trained(write_checkpoint(tmp_path / "other", vocab_size=385, hidden_size=8), 1)
    with pytest.raises(UserError, match="of another model: .*mlp.* was .8, 12., is .8, 48."):
        resume.load(tmp_path, *other, RUN)
    with pytest.raises(UserError, match="lr was 0.1, is 0.2"):
        resume.load(tmp_path, *pair, RUN | {"lr": 0.2})


def test_a_state_of_earlier_versions_is_refused_with_one_line(tmp_path, pair, spoil):
    def older(content):
        content.pop("world"), content.pop("tensors")

    with pytest.raises(UserError, match="written by an earlier minfin"):
        spoil(older)
    for use in (resume.load, lambda out, _, __, run: resume.finished(out, run)):
        with pytest.raises(UserError, match="step_00000006: written by an earlier minfin"):
            use(tmp_path, *pair, RUN)


def test_every_byte_of_a_file_is_verified_by_one_rank(folder, tmp_path, pair, monkeypatch):
    write_as(tmp_path, contents(*pair), 4)
    state, read = states.folder_of(tmp_path, 7), []
    hash_of = states.hash_of
    monkeypatch.setattr(states, "hash_of", lambda f: read.append(f.name) or hash_of(f))
    assert loaded(tmp_path, folder)[0] == 7
    assert sorted(read) == [states.file_of(rank, 4) for rank in range(4)]
    for rank in range(4):  # the last byte of each, and the first of the header
        file = state / states.file_of(rank, 4)
        whole = file.read_bytes()
        for at in (0, 9, len(whole) - 1):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert resume.newest_good(tmp_path) == (None, None)
        file.write_bytes(whole)
    assert resume.newest_good(tmp_path)[0] == state
