"""Bad inputs: files that are not the json lines, parquet or text they are taken for."""

import bz2
import gzip
import lzma
import os

from making import (
    CONTAMINATION,
    CPT,
    DPO,
    EVAL,
    SAMPLE,
    SFT,
    TOKENS,
    Case,
    append,
    curate,
    cut,
    directory,
    each,
    line,
    nothing,
    put,
    remove,
    show,
)

GOOD = b'{"text": "one two"}\n'
DEEP = b"[" * 40 + b"]" * 40
DEEPER = b"[" * 90_000 + b"]" * 90_000
BIG = b'{"text": "' + b"a " * (8 * 2**20) + b'"}'
TWICE = '{"id": "x", "prompt": [{"role": "user", "role": "user", "content": "a"}], "answer": "1"}'


def loop(name):
    """A link that points at itself: no rights of any user open it."""

    def make(folder):
        (folder / name).unlink()
        os.symlink(name, folder / name)

    return make


def parquet(name, share=1.0, **columns):
    def make(folder):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), folder / name)
        cut(name, share)(folder)

    return make


def jsonl(name, command, make, pattern, code=1):
    return Case("jsonl", name, command, make, pattern, code)


def corpus(name, command, make, pattern, code=1):
    return Case("corpus", name, command, make, pattern, code)


def text(raw):
    return line("text.jsonl", raw)


FILES = [
    jsonl("not UTF-8", SFT(), line("chat.jsonl", b'{"messages": "caf\xe9"}'),
          r"chat.jsonl:2: not UTF-8 at byte 18; save it as UTF-8"),
    jsonl("UTF-8 cut inside a character", CPT(), text(b'{"text": "\xe2\x82"}'),
          r"text.jsonl:2: not UTF-8 at byte 11"),
    jsonl("a surrogate in UTF-8", TOKENS(), text(b'{"text": "\xed\xa0\x80"}'),
          r"text.jsonl:2: not UTF-8"),
    jsonl("byte order mark", CPT(), put("text.jsonl", b"\xef\xbb\xbf" + GOOD),
          r"text.jsonl:1: the file starts with a byte order mark; save it"),
    jsonl("UTF-16", DPO(), put("pairs.jsonl", GOOD.decode().encode("utf-16")),
          r"pairs.jsonl:1: the file is UTF-16; save it as UTF-8"),
    jsonl("UTF-16 without a mark", TOKENS(), put("text.jsonl", GOOD.decode().encode("utf-16-le")),
          r"text.jsonl:1: not json"),
    jsonl("UTF-32", TOKENS(), put("text.jsonl", GOOD.decode().encode("utf-32")),
          r"text.jsonl:1: the file is UTF-16"),
    jsonl("a NUL byte", SFT(), line("chat.jsonl", b'{"messages": "a\x00"}'),
          r"chat.jsonl:2: not json: Invalid control character"),
    jsonl("NUL written as an escape", CPT(), text(b'{"text": "a\\u0000"}'),
          r"text.jsonl:2: text: holds a NUL character"),
    jsonl("a file of NUL", TOKENS(), put("text.jsonl", bytes(4096)), r"text.jsonl: holds no rows"),
    jsonl("a key twice", SFT(), line("chat.jsonl", '{"messages": [], "messages": []}'),
          r"chat.jsonl:2: messages: the key is there twice"),
    jsonl("a key twice inside", SAMPLE(), line("prompts.jsonl", TWICE),
          r"prompts.jsonl:2: role: the key is there twice"),
    jsonl("NaN", DPO(), line("pairs.jsonl", '{"prompt": "a", "score": NaN}'),
          r"pairs.jsonl:2: NaN is not a number"),
    jsonl("Infinity", EVAL(), line("eval/arc.jsonl", '{"query": "a", "score": -Infinity}'),
          r"eval/arc.jsonl:2: -Infinity is not a number"),
    jsonl("1e999", TOKENS(), text('{"text": "a", "score": 1e999}'),
          r"text.jsonl:2: 1e999 is not a number"),
    jsonl("a number of 5,000 digits", CPT(), text('{"text": "a", "n": ' + "9" * 5000 + "}"),
          r"text.jsonl:2: .*digits"),
    jsonl("nested 40 deep", SFT(), line("chat.jsonl", b'{"messages": ' + DEEP + b"}"),
          r"chat.jsonl:2: messages: nested deeper than 32 levels"),
    jsonl("nested 90,000 deep", CPT(), text(b'{"text": ' + DEEPER + b"}"),
          r"text.jsonl:2: nested too deep"),
    jsonl("half a surrogate pair", CPT(), text('{"text": "\\ud83d"}'),
          r"text.jsonl:2: text: holds a lone surrogate"),
    jsonl("half a surrogate pair in a key", TOKENS(), text('{"text": "a", "\\ud83d": 1}'),
          r"text.jsonl:2: \\ud83d: holds a lone surrogate"),
    jsonl("a line over 16 MB", CPT(), text(BIG), r"text.jsonl:2: longer than 16 MB; split"),
    jsonl("a line over 16 MB, tokenised by two", TOKENS(workers=2), text(BIG),
          r"text.jsonl:2: longer than 16 MB; split"),
    jsonl("gzip", SFT(), put("chat.jsonl", gzip.compress(GOOD)),
          r"chat.jsonl:1: the file is compressed; unpack it"),
    jsonl("bz2", DPO(), put("pairs.jsonl", bz2.compress(GOOD)), r"pairs.jsonl:1: .* compressed"),
    jsonl("xz", CPT(), put("text.jsonl", lzma.compress(GOOD)), r"text.jsonl:1: .* compressed"),
    jsonl("zstd", TOKENS(), put("text.jsonl", b"\x28\xb5\x2f\xfd" + GOOD), r"text.jsonl:1: .*comp"),
    jsonl("zip", SAMPLE(), put("prompts.jsonl", b"PK\x03\x04" + GOOD), r"prompts.jsonl:1: .*comp"),
    jsonl("parquet", SFT(), parquet("chat.jsonl", text=["a"]),
          r"chat.jsonl:1: the file is a parquet file, not json lines"),
    jsonl("csv", TOKENS(), put("text.jsonl", "id,text\n1,one\n"), r"text.jsonl:1: not json"),
    jsonl("html", CPT(), put("text.jsonl", "<!doctype html>\n<html>\n"), r"text.jsonl:1: not json"),
    jsonl("a pickle", CPT(), put("text.jsonl", b"\x80\x04\x95\x0b\n"), r"text.jsonl:1: not UTF-8"),
    jsonl("Python's quotes", SFT(), line("chat.jsonl", "{'messages': []}"),
          r"chat.jsonl:2: not json: Expecting property name"),
    jsonl("a comma behind the last", TOKENS(), text('{"text": "a",}'), r"text.jsonl:2: not json"),
    jsonl("two rows on a line", CPT(), text('{"text": "a"} {"text": "b"}'),
          r"text.jsonl:2: not json: Extra data"),
    jsonl("a remark", TOKENS(), text("# from the web"), r"text.jsonl:2: not json"),
    jsonl("a list in place of an object", SFT(), line("chat.jsonl", "[1]"),
          r"chat.jsonl:2: must be an object, not a list"),
    jsonl("a string in place of an object", DPO(), line("pairs.jsonl", '"a"'),
          r"pairs.jsonl:2: must be an object, not a string"),
    jsonl("null in place of an object", EVAL(), line("eval/arc.jsonl", "null"),
          r"eval/arc.jsonl:2: must be an object, not null"),
    jsonl("a json list of rows", SFT(), put("chat.jsonl", '[{"messages": []}]\n'),
          r"chat.jsonl:1: must be an object, not a list"),
    jsonl("rows over several lines", DPO(), put("pairs.jsonl", '{\n "prompt": "a"\n}\n'),
          r"pairs.jsonl:1: not json"),
    jsonl("a torn line in the middle", CPT(), text('{"text": "one tw'),
          r"text.jsonl:2: not json"),
    jsonl("a torn last line", SFT(), append("chat.jsonl", '{"messages": [{"role": "us'),
          r"chat.jsonl: incomplete last line, left out", 0),
    jsonl("a torn last line of texts", TOKENS(), append("text.jsonl", '{"text": "on'),
          r"notice: text.jsonl: incomplete last line, left out", 0),
    jsonl("an empty file", SFT(), put("chat.jsonl", ""), r"chat.jsonl: holds no rows"),
    jsonl("blank lines only", DPO(), put("pairs.jsonl", "\n \n\r\n"),
          r"pairs.jsonl: holds no rows"),
    jsonl("an empty file of prompts", SAMPLE(), put("prompts.jsonl", ""),
          r"prompts.jsonl: holds no prompt that can be sampled"),
    jsonl("an empty file of questions", EVAL(), put("eval/arc.jsonl", ""),
          r"eval/arc.jsonl: no rows"),
    jsonl("no such file", CPT(), remove("text.jsonl"), r"text.jsonl: no such file"),
    jsonl("no such file of pairs", DPO(pairs="pairs.json"), nothing, r"pairs.json: no such file"),
    jsonl("no such held-out file", SFT(heldout_chat="none.jsonl"), nothing,
          r"none.jsonl: no such file"),
    jsonl("no such file among several", CPT(text="text.jsonl,none.jsonl"), nothing,
          r"none.jsonl: no such file"),
    jsonl("no such file to show", show("none.jsonl"), nothing, r"none.jsonl: no such file"),
    jsonl("no such line to show", show(row=99), nothing, r"chat.jsonl: has no row on line 99"),
    jsonl("no list of files", SFT(chat=" "), nothing, r".*(empty|no such file)"),
    jsonl("a folder", TOKENS(), directory("text.jsonl"), r"text.jsonl: is a directory"),
    jsonl("a folder to train on", SFT(), directory("chat.jsonl"),
          r"chat.jsonl: (is a dir|no such)"),
    jsonl("a file that cannot be opened", TOKENS(), loop("text.jsonl"),
          r"text.jsonl: too many levels"),
    jsonl("a path below a file", TOKENS("worker"), nothing, r".*worker"),
    jsonl("a path through a file", SAMPLE(prompts="text.jsonl/a.jsonl"), nothing,
          r"text.jsonl/a.jsonl: not a directory"),
    jsonl("searched for questions: no text", CONTAMINATION(), text('{"words": "a"}'),
          r"text.jsonl:2: holds no text"),
    # ---- what curate.py reads: bad rows are counted, too many of them publish nothing ----
    corpus("a row that is not UTF-8", curate("stats", max_bad=0.2), text(b'{"text": "\xe9"}'),
           r"unreadable: text.jsonl:2: not UTF-8 at byte 11", 0),
    corpus("rows in = kept + dropped", curate("select", max_bad=0.2), text("{"),
           r"out.jsonl: 12 rows = 11 kept \+ 1 skipped \[1 unreadable\]", 0),
    corpus("too many unreadable rows", curate("select"), text("{"),
           r"1 of 12 rows cannot be read, the first: text.jsonl:2: not json"),
    corpus("a line over 16 MB", curate("dedup", max_bad=0.2), text(BIG),
           r"unreadable: text.jsonl:2: longer than 16 MB; split the document", 0),
    corpus("a torn last line", curate("select", max_bad=0.2), append("text.jsonl", '{"te'),
           r"unreadable: text.jsonl:13: incomplete last line", 0),
    corpus("rows of no known shape", curate("convert", max_bad=0.2), text('{"words": 1}'),
           r"unreadable: text.jsonl:2: no known shape; the row has words", 0),
    corpus("rows that hold tokens", curate("convert"), text('{"input_ids": [1, 2]}'),
           r"1 of 12 rows cannot be read.*text.jsonl:2: input_ids: holds tokens, not text"),
    corpus("rows without text", curate("dedup", max_bad=0.2), text('{"url": "x"}'),
           r"unreadable: text.jsonl:2: holds no text", 0),
    corpus("a parquet file cut short", curate("select", data="a.parquet"),
           parquet("a.parquet", 0.5, text=["one two"] * 50), r"a.parquet: not readable as parquet"),
    corpus("a parquet file of other columns", curate("select", data="a.parquet"),
           parquet("a.parquet", page=["one two"]), r"1 of 1 rows cannot be read.*a.parquet: row 0"),
    corpus("a json list cut short", curate("select", data="a.json"),
           put("a.json", '[{"text": "a"}, {"te'), r"a.json:1: not valid json"),
    corpus("a json list of strings", curate("select", data="a.json"), put("a.json", '["a", "b"]'),
           r"a.json: must hold a list of objects"),
    corpus("a json list with NaN", curate("select", data="a.json"),
           put("a.json", '[{"text": "a", "n": NaN}]'), r"a.json:1: not valid json: NaN"),
    corpus("a json list nested deep", curate("select", data="a.json"),
           put("a.json", b"[" + DEEPER + b"]"), r"a.json:1: not valid json"),
    corpus("csv with a torn quote", curate("convert", data="a.csv"),
           put("a.csv", 'id,text\n1,"one\n'), r"a.csv:\d: not valid csv"),
    corpus("csv with a cell too many", curate("convert", data="a.csv"),
           put("a.csv", "id,text\n1,a\n1,a,b\n"), r"a.csv:3: 3 cells, but the first line names 2"),
    corpus("an empty csv", curate("convert", data="a.csv"), put("a.csv", ""), r"a.csv: no rows"),
    corpus("a text that is not UTF-8", curate("convert", data="a.txt"), put("a.txt", b"caf\xe9"),
           r"1 of 1 rows cannot be read, the first: a.txt: 1: is not utf-8 at byte 4"),
    corpus("gzip", curate("select", data="a.jsonl.gz"), put("a.jsonl.gz", gzip.compress(GOOD)),
           r"a.jsonl.gz:1: the file is compressed; unpack it"),
    corpus("an empty folder", curate("select", data="more"), directory("more"),
           r"--data more: the folder holds no .jsonl"),
    corpus("a folder of other files", curate("select", data="more"), put("more/a.bin", b"a"),
           r"--data more: the folder holds no .jsonl"),
    corpus("an empty file", curate("select"), put("text.jsonl", ""),
           r"--data text.jsonl: holds no"),
    corpus("no such file", curate("select", data="none.jsonl"), nothing,
           r"--data none.jsonl: no such file or folder"),
    corpus("a file twice", curate("select", data="text.jsonl,text.jsonl"), nothing,
           r"--data: text.jsonl is there twice"),
    corpus("no list of sites", curate("select", sites="sites.txt"), nothing,
           r"sites.txt: [Nn]o such file"),
    corpus("a list of remarks only", curate("select", sites="sites.txt"), put("sites.txt", "# a\n"),
           r"sites.txt: holds no line"),
    corpus("no tasks to compare with", curate("decontaminate", eval_data="more"), directory("more"),
           r"--eval_data more: no TASK.jsonl in it"),
    corpus("a torn task to compare with", curate("decontaminate", eval_data="eval"),
           line("eval/arc.jsonl", "{"), r"eval/arc.jsonl:2: not json"),
    corpus("the result of other settings", curate("select", min_words=3),
           each(put("out.jsonl", ""), put("out.counts.json", '{"made_from": {}, "counts": {}}')),
           r"out.counts.json: is not what curate.py writes here; delete it"),
    corpus("torn counts of a result", curate("select"), put("out.counts.json", '{"made_from": '),
           r"out.counts.json:1: not valid json"),
    corpus("foreign counts of a result", curate("select"),
           put("out.counts.json", '{"made_from": []}'),
           r"out.counts.json: .*(delete|made_from)"),
]  # fmt: skip
