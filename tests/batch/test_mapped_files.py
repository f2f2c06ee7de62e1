"""A file of rows through a bundle: every format, every task, rows that are refused, and work that is another's."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import tfm
from tests.support.task_models import make, quick
from tfm.batch import Mapper, map_file
from tfm.errors import BundleError, InputError, TextWarning
from tfm.runtime import embedding_ranges

FORMATS = ["parquet", "feather", "csv", "jsonl"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows in the format that a name says, by another way than the library's own."""
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=7)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path, chunksize=11)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Read rows back, vectors of CSV from their JSON."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".csv":
        rows = pyarrow.csv.read_csv(path).to_pylist()
        return [{**row, "embedding": row["embedding"] and json.loads(row["embedding"])} for row in rows]
    return (pq.read_table if path.suffix == ".parquet" else pyarrow.feather.read_table)(path).to_pylist()


def refusals(path: Path) -> dict[int, str]:
    lines = path.with_name(f"{path.name}.rejected.jsonl").read_text(encoding="utf-8").splitlines()
    said = [json.loads(line) for line in lines]
    assert len({one["row"] for one in said}) == len(said)  # each once
    return {one["row"]: one["reason"] for one in said}


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_every_format_holds_what_embed_gives(source: str, target: str, bundle, make_rows, tmp_path) -> None:
    rows = make_rows(100)
    given, made = write(tmp_path / f"in.{source}", rows), tmp_path / f"out.{target}"
    report = map_file(Mapper(bundle=bundle, column="text"), given, made, chunk_rows=32)
    assert (report.rows, report.rejected, report.rejected_file, report.kept) == (100, 0, None, 0)
    with tfm.load(bundle) as model:
        right = model.embed([row["text"] for row in rows])
    found = read(made)
    assert np.array_equal(np.array([row.pop("embedding") for row in found], np.float32), right)
    # CSV has no types: what comes from there stays the text that it was.
    ids = [str(row["id"]) if source == "csv" and target != "csv" else row["id"] for row in rows]
    assert found == [{**row, "id": number} for row, number in zip(rows, ids, strict=True)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([given.name, made.name])


@pytest.mark.parametrize("target", ["parquet", "arrow"])
def test_embeddings_are_lists_of_one_size_and_the_schema_stays(target, bundle, make_rows, tmp_path) -> None:
    table = pa.Table.from_pylist(make_rows(10)).replace_schema_metadata({"mine": "kept"})
    # Each part of a file would have another dictionary, which Arrow's files cannot hold.
    kinds = pa.chunked_array([pa.array(["x"] * 5).dictionary_encode(), pa.array(["y"] * 5).dictionary_encode()])
    table = table.append_column("kind", kinds)
    pq.write_table(table, tmp_path / "in.parquet")
    made = tmp_path / f"out.{target}"
    map_file(Mapper(bundle=bundle, column="text", prefix="my_"), tmp_path / "in.parquet", made, chunk_rows=3)
    found = pq.read_table(made) if target == "parquet" else pyarrow.feather.read_table(made)
    assert found.schema.field("my_embedding").type == pa.list_(pa.float32(), 4)
    assert found.schema.metadata == {b"mine": b"kept"}
    assert found.column("kind").to_pylist() == ["x"] * 5 + ["y"] * 5
    assert found.select(["id", "text"]).to_pylist() == table.select(["id", "text"]).to_pylist()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"dtype": "binary"}, pa.list_(pa.int8(), 1)),
        ({"dtype": "ubinary"}, pa.list_(pa.uint8(), 1)),
        ({"dtype": "int8", "ranges": True}, pa.list_(pa.int8(), 4)),
        ({"dimensions": 2, "normalize": True}, pa.list_(pa.float32(), 2)),
    ],
    ids=str,
)
def test_embeddings_have_the_form_that_is_asked_for(settings, kind, bundle, make_rows, tmp_path) -> None:
    rows = make_rows(50)
    texts = [row["text"] for row in rows]
    with tfm.load(bundle) as model:
        if "ranges" in settings:
            settings = {**settings, "ranges": embedding_ranges(model.embed(texts))}
        right = model.embed(texts, **settings)
    mapper = Mapper(bundle=bundle, column="text", settings=settings)
    map_file(mapper, write(tmp_path / "in.parquet", rows), tmp_path / "out.parquet", chunk_rows=16)
    column = pq.read_table(tmp_path / "out.parquet").column("embedding")
    assert column.type == kind
    assert np.array_equal(np.array(column.to_pylist()), right)


def test_int8_without_ranges_says_how_they_are_made(bundle, make_rows, tmp_path) -> None:
    mapper = Mapper(bundle=bundle, column="text", settings={"dtype": "int8"})
    with pytest.raises(InputError, match=r"need ranges, the same for all rows.*--ranges FILE\.npy"):
        map_file(mapper, write(tmp_path / "in.parquet", make_rows(5)), tmp_path / "out.parquet")


BAD_LINES = {
    3: ("null", {"text": None}, "it is null"),
    5: ("a number", {"text": 7}, "text is 7, not a text"),
    8: ("no JSON", b"{", "the line is not JSON"),
    9: ("no object", b"[1]", "the line is a list and no object"),
    11: ("half a character", b'{"text": "\\ud800"}', "half a character"),
    12: ("no UTF-8", b'{"text": "\xff"}', "not JSON"),
    13: ("too long", {"text": "a " * 40}, "the text has more tokens than the 8 that are read"),
    20: ("null again", {}, "it is null"),
}


@pytest.fixture
def bad_lines(make_rows, tmp_path) -> Path:
    lines = [json.dumps(row).encode() for row in make_rows(40)]
    for place, (_, bad, _) in BAD_LINES.items():
        lines[place] = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n\n")
    return tmp_path / "in.jsonl"


@pytest.mark.parametrize("target", ["parquet", "jsonl"])
def test_rows_that_are_refused_are_named_and_keep_no_other_from_its_result(
    target, bad_lines, bundle, make_rows, tmp_path
) -> None:
    made = tmp_path / f"out.{target}"
    mapper = Mapper(bundle=bundle, column="text", settings={"long_texts": "refuse"})
    report = map_file(mapper, bad_lines, made, chunk_rows=6)
    found, said = read(made), refusals(made)
    assert (report.rows, report.rejected) == (40, len(BAD_LINES))
    assert report.rejected_file == f"{made}.rejected.jsonl"
    assert list(said) == list(BAD_LINES)
    for row, (_, _, why) in BAD_LINES.items():
        assert why in said[row]
        assert found[row]["embedding"] is None
    with tfm.load(bundle) as model:
        for row, given in enumerate(make_rows(40)):
            if row not in BAD_LINES:
                assert np.array_equal(np.float32(found[row]["embedding"]), model.embed(given["text"])[0])
                assert (found[row]["id"], found[row]["text"]) == (given["id"], given["text"])


def test_a_text_of_parquet_that_is_no_utf_8_is_refused_alone(bundle, tmp_path) -> None:
    texts = pa.array([b"a b", b"\xff", b"c"], pa.binary())
    broken = pa.StringArray.from_buffers(3, texts.buffers()[1], texts.buffers()[2])
    pq.write_table(pa.table({"text": broken}), tmp_path / "in.parquet")
    map_file(Mapper(bundle=bundle, column="text"), tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert list(refusals(tmp_path / "out.jsonl")) == [1]
    assert [row["embedding"] is None for row in read(tmp_path / "out.jsonl")] == [False, True, False]


def test_a_refusal_is_fatal_where_that_is_asked_for_and_what_is_finished_stays(bad_lines, bundle, tmp_path) -> None:
    mapper = Mapper(bundle=bundle, column="text", settings={"long_texts": "refuse"})
    made = tmp_path / "out.parquet"
    with pytest.raises(InputError, match=r"row 3 of .*in\.jsonl: it is null; finished parts are kept"):
        map_file(mapper, bad_lines, made, chunk_rows=2, on_error="fail")
    assert not made.exists()
    assert map_file(mapper, bad_lines, made, chunk_rows=2).kept == 2


def interrupted(mapper: Mapper, source: Path, target: Path, after: int, **options: Any) -> None:
    """End a job when so many rows are done."""

    class EnoughError(Exception):
        pass

    def told(done: int, total: int) -> None:
        if done >= after:
            raise EnoughError

    with pytest.raises(EnoughError):
        map_file(mapper, source, target, progress=told, **options)


def test_work_that_was_interrupted_goes_on_and_computes_nothing_twice(bundle, make_rows, tmp_path) -> None:
    source, mapper = write(tmp_path / "in.parquet", make_rows(100)), Mapper(bundle=bundle, column="text")
    map_file(mapper, source, tmp_path / "right.parquet", chunk_rows=10)
    interrupted(mapper, source, tmp_path / "out.parquet", 40, chunk_rows=10)
    told = []
    report = map_file(mapper, source, tmp_path / "out.parquet", chunk_rows=10, progress=lambda *at: told.append(at))
    assert report.kept == 40
    assert told == [(done, 100) for done in range(40, 101, 10)]
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "right.parquet").read_bytes()
    assert not (tmp_path / "out.parquet.parts").exists()


@pytest.mark.parametrize("change", ["input", "time", "bundle", "column", "settings", "chunks"])
def test_parts_of_other_work_are_refused_and_restart_throws_them_away(
    change: str, bundle, make_rows, tmp_path, toys
) -> None:
    rows = [{**row, "other": "a"} for row in make_rows(40)]
    source, target = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    interrupted(Mapper(bundle=bundle, column="text"), source, target, 20, chunk_rows=10)
    # First that it is refused is not for another reason than the change.
    begun = {path.name: path.read_bytes() for path in (tmp_path / "out.jsonl.parts").iterdir()}
    chunk_rows = 11 if change == "chunks" else 10
    if change == "input":
        write(source, [*rows, rows[0]])
    elif change == "time":
        os.utime(source, ns=(1, 1))
    elif change == "bundle":
        bundle = toys.write_bundle(tmp_path / "other.tfm", "encoder", family="other")
    mapper = Mapper(
        bundle=bundle,
        column="other" if change == "column" else "text",
        settings={"normalize": True} if change == "settings" else {},
    )
    with pytest.raises(InputError, match=r"finished parts of other work: .* was .*--restart"):
        map_file(mapper, source, target, chunk_rows=chunk_rows)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out.jsonl.parts").iterdir()} == begun
    report = map_file(mapper, source, target, chunk_rows=chunk_rows, restart=True)
    assert report.kept == 0
    map_file(mapper, source, tmp_path / "right.jsonl", chunk_rows=chunk_rows)
    assert target.read_bytes() == (tmp_path / "right.jsonl").read_bytes()


def test_an_output_that_is_complete_is_left_alone_unless_asked(bundle, make_rows, tmp_path) -> None:
    source, target = write(tmp_path / "in.csv", make_rows(10)), tmp_path / "out.csv"
    mapper = Mapper(bundle=bundle, column="text")
    map_file(mapper, source, target)
    with pytest.raises(InputError, match=r"out\.csv is there already, and complete; --restart"):
        map_file(mapper, source, target)
    map_file(mapper, source, target, restart=True)


def test_another_process_at_the_same_work_is_refused(bundle, make_rows, tmp_path) -> None:
    from tfm.batch.part_store import PartStore

    source, target = write(tmp_path / "in.csv", make_rows(10)), tmp_path / "out.csv"
    with (
        PartStore(target).held(),
        pytest.raises(InputError, match=r"another process is at work in .*out\.csv\.parts"),
    ):
        map_file(Mapper(bundle=bundle, column="text"), source, target)


@pytest.mark.parametrize("where", ["parts and output", "parts alone", "other work"])
def test_a_run_that_was_killed_when_all_was_in_place_is_finished(where: str, bundle, make_rows, tmp_path) -> None:
    source, target = write(tmp_path / "in.jsonl", make_rows(30)), tmp_path / "out.jsonl"
    folder, mapper = tmp_path / "out.jsonl.parts", Mapper(bundle=bundle, column="text")
    interrupted(mapper, source, target, 30, chunk_rows=10)
    plan = (folder / "plan.json").read_bytes()
    map_file(mapper, source, target, chunk_rows=10)
    right = target.read_bytes()
    folder.mkdir()
    # What there is when a process dies before, while and after the parts are removed.
    if where == "parts and output":
        interrupted(mapper, source, tmp_path / "again.jsonl", 30, chunk_rows=10)
        for file in (tmp_path / "again.jsonl.parts").iterdir():
            file.rename(folder / file.name)
    else:
        (folder / "done.json").write_bytes(plan)
    if where == "other work":
        with pytest.raises(InputError, match="complete"):
            map_file(mapper, source, target, chunk_rows=9)
    else:
        assert map_file(mapper, source, target, chunk_rows=10).kept == 30
    assert target.read_bytes() == right
    assert not folder.exists()


def test_two_workers_make_what_one_makes(bundle, bad_lines, tmp_path) -> None:
    mapper = Mapper(bundle=bundle, column="text", settings={"long_texts": "refuse"})
    for workers in (1, 2):
        map_file(mapper, bad_lines, tmp_path / f"{workers}.jsonl", chunk_rows=3, workers=workers)
    for end in ("", ".rejected.jsonl"):
        assert (tmp_path / f"1.jsonl{end}").read_bytes() == (tmp_path / f"2.jsonl{end}").read_bytes()


def test_texts_that_are_cut_are_told_of_once(bundle, tmp_path) -> None:
    source = write(tmp_path / "in.jsonl", [{"text": "a " * 40}] * 9)
    with pytest.warns(TextWarning, match=r"of the rows 0 to 2, .* more tokens than the 8 .*\(said once\)") as said:
        report = map_file(Mapper(bundle=bundle, column="text"), source, tmp_path / "out.jsonl", chunk_rows=3)
    assert (len(said), report.rejected) == (1, 0)


def test_a_worker_refuses_a_bundle_that_was_replaced(bundle, make_rows, tmp_path) -> None:
    mapper = Mapper(bundle=bundle, column="text", digest="0" * 64)
    with pytest.raises(BundleError, match="not the bundle that this work began with"):
        mapper(pa.table({"text": ["a"]}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": "in.txt"}, r"in\.txt: nobody knows the format"),
        ({"source": "missing.csv"}, r"missing\.csv is no file"),
        ({"source": "torn.parquet"}, r"torn\.parquet cannot be read: "),
        ({"target": "out.xlsx"}, r"out\.xlsx: nobody knows the format"),
        ({"target": "in.csv"}, r"is the input itself"),
        ({"target": "nowhere/out.csv"}, r"there is no folder .*nowhere"),
        ({"column": "txt"}, r"there is no column 'txt'; there are: id, text"),
        ({"column": "id", "source": "in.jsonl"}, r"the column 'id' holds int64, not texts"),
        ({"task": "classify"}, r"does not classify; of .* it has: embed"),
        ({"settings": {"dimension": 3}}, r"no option 'dimension'"),
        ({"source": "taken.csv"}, r"a column 'embedding' already; name the new ones otherwise"),
        ({"query": "a"}, r"a query is for rank; the task here is embed"),
        ({"workers": 0}, r"workers must be an integer of at least 1"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(given, said, bundle, make_rows, tmp_path) -> None:
    for name in ("in.csv", "in.jsonl"):
        write(tmp_path / name, make_rows(3))
    write(tmp_path / "taken.csv", [{"text": "a", "embedding": "b"}])
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    before = sorted(tmp_path.iterdir())
    paths = [tmp_path / given.get(name, default) for name, default in (("source", "in.csv"), ("target", "out.csv"))]
    mapping = {name: given[name] for name in ("task", "settings", "query") if name in given}
    mapper = Mapper(bundle=bundle, column=given.get("column", "text"), **mapping)
    with pytest.raises(InputError, match=said):
        map_file(mapper, *paths, workers=given.get("workers", 1))
    assert sorted(tmp_path.iterdir()) == before


def test_classify_gives_labels_and_scores(tmp_path, make_rows) -> None:
    make("bert", "ForSequenceClassification", tmp_path / "checkpoint", id2label={0: "good", 1: "bad"})
    quick(tmp_path / "checkpoint", tmp_path / "labels.tfm")
    source = write(tmp_path / "in.jsonl", [{"text": "the cat"}, {"text": None}, {"text": "a dog runs"}])
    with tfm.load(tmp_path / "labels.tfm") as model:
        right = model.classify(["the cat", "a dog runs"], top_k=None)
    one, both = (Mapper(bundle=tmp_path / "labels.tfm", column="text", settings={"top_k": k}) for k in (1, 2))
    map_file(one, source, tmp_path / "one.parquet")
    map_file(both, source, tmp_path / "both.parquet")
    found = pq.read_table(tmp_path / "one.parquet").to_pylist()
    assert [row["label"] for row in found] == [right[0][0]["label"], None, right[1][0]["label"]]
    assert found[0]["score"] == pytest.approx(right[0][0]["score"], abs=1e-6)
    found = pq.read_table(tmp_path / "both.parquet").to_pylist()
    assert [row["labels"] for row in found] == [
        [one["label"] for one in right[0]],
        None,
        [o["label"] for o in right[1]],
    ]
    assert sum(found[2]["scores"]) == pytest.approx(1)


def test_rank_scores_each_row_for_one_query_or_for_its_own(tmp_path) -> None:
    make("bert", "ForSequenceClassification", tmp_path / "checkpoint", id2label={0: "score"})
    quick(tmp_path / "checkpoint", tmp_path / "reranker.tfm")
    rows = [{"q": "the cat", "text": "a dog"}, {"q": None, "text": "runs"}, {"q": "a dog", "text": "a dog"}]
    source, place = write(tmp_path / "in.jsonl", rows), tmp_path / "reranker.tfm"
    with tfm.load(place) as model:

        def score(query: str, text: str) -> Any:
            return pytest.approx(model.rank(query, [text])[0]["score"], abs=1e-6)

        right = [score("the cat", "a dog"), None, score("a dog", "a dog")]
        same = [score("the cat", row["text"]) for row in rows]
    asked = {"bundle": place, "column": "text", "task": "rank"}
    map_file(Mapper(**asked, query_column="q"), source, tmp_path / "own.jsonl")
    assert [row["score"] for row in read(tmp_path / "own.jsonl")] == right
    map_file(Mapper(**asked, query="the cat"), source, tmp_path / "one.jsonl")
    assert [row["score"] for row in read(tmp_path / "one.jsonl")] == same
    with pytest.raises(InputError, match="rank needs either a query or a column of queries"):
        map_file(Mapper(**asked), source, tmp_path / "none.jsonl")


def test_generate_gives_a_text_for_each_row(tmp_path, toys) -> None:
    copier = toys.write_bundle(tmp_path / "copier.tfm", "copier")
    source = write(tmp_path / "in.csv", [{"text": text} for text in ("abc", "z", "hg")])
    map_file(Mapper(bundle=copier, column="text"), source, tmp_path / "out.jsonl")
    assert [row["output"] for row in read(tmp_path / "out.jsonl")] == ["a b c", None, "h g"]
    assert "z" in refusals(tmp_path / "out.jsonl")[1]
    with pytest.raises(InputError, match="leave do_sample out"):
        map_file(Mapper(bundle=copier, column="text", settings={"do_sample": True}), source, tmp_path / "2.jsonl")


def test_a_mapper_is_called_with_tables_and_pickled_to_others(bundle, tmp_path) -> None:
    import pickle

    mapper = Mapper(bundle=bundle, column="text")
    table = pa.table({"text": ["a b", None, "c"], "n": [1, 2, 3]})
    found = pickle.loads(pickle.dumps(mapper))(table)
    assert found.equals(mapper(table))  # which has the bundle open by now
    assert found.equals(pickle.loads(pickle.dumps(mapper))(table))
    assert found.column_names == ["text", "n", "embedding", "rejected"]
    assert found.column("rejected").to_pylist() == [None, "it is null", None]
    assert found.column("embedding").type == pa.list_(pa.float32(), 4)
