"""A column that a pipeline names and that is not there is never read as null without a word."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.config import load_pipeline
from prefkit.errors import UsageError
from prefkit.manifest import Manifest
from prefkit.pairs import columns
from prefkit.pairs.build import build_pairs
from prefkit.pairs.columns import Column
from prefkit.pairs.inputs import RawFile
from prefkit.pairs.named import Named, Unmet, _table, named
from prefkit.pairs.records import Completion, Message, Numbered, Rated
from prefkit.resolve import check

ROWS = [
    {
        "prompt": f"What is {n} and {n + 1}?",
        "chosen": f"It is {n}.",
        "rejected": "No idea.",
        "by": "m",
        "meta": {"of": n},
    }
    for n in range(20)
]
LISTS = [
    {
        "prompt": f"What is {n} times {n}?",
        "outputs": [{"text": f"It is {n} {k}.", "stars": k, "who": "m"} for k in (1, 2)],
    }
    for n in range(20)
]
OF_LISTS = {"completions": "outputs", "response": "text", "score": "stars"}


def without(rows: Sequence[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        zipped = path.suffix == ".gz"
        with gzip.open(path, "wt") if zipped else open(path, "w", newline="") as file:  # type: ignore[arg-type]
            table = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if ".tsv" in path.name else ",")
            table.writeheader()
            table.writerows(rows)
    return path


def build(
    folder: Path, use: str, options: dict[str, Any], *files: Path, limit: int | None = None, cut: int = 0
) -> Manifest:
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items() if not isinstance(value, dict)]
    lines += [
        f"{name}.{key} = {json.dumps(path)}"
        for name, of in options.items()
        if isinstance(of, dict)
        for key, path in of.items()
    ]
    text = "\n".join(["[[build.inputs]]", f'use = "{use}"', *lines])
    (folder / "p.toml").write_text(text)
    pipeline = load_pipeline(folder / "p.toml", [f"build.chunk_bytes={cut}"] if cut else [])
    return build_pairs(
        pipeline, folder / "out", given=list(map(str, files)), limit=limit, overwrite=True, with_report=False
    )


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.parquet"])
@pytest.mark.parametrize("option", ["prompt", "system", "chosen_model", "source_column"])
def test_a_table_that_lacks_it_is_refused_at_once(tmp_path: Path, name: str, option: str) -> None:
    path = write(tmp_path / name, without(ROWS, "meta"))
    mend = rf'p: \[\[build.inputs\]\] pairs: {option} = "bye", but there is no such column in .*{name}. '
    mend += r'There are prompt, chosen, rejected, by. Did you mean "by"\?$'
    with pytest.raises(UsageError, match=mend):
        build(tmp_path, "pairs", {option: "bye"}, path)
    assert not (tmp_path / "out").exists()
    assert build(tmp_path, "pairs", {"system": "by"}, path).remarks == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("cut", [0, 700])
def test_rows_of_json_that_lack_it_are_refused_once_they_are_read(tmp_path: Path, name: str, cut: int) -> None:
    path = write(tmp_path / name, ROWS)
    mend = f'pairs: system = "meta.off", but there is no such column in any row of {name}. '
    mend += 'There are prompt, chosen, rejected, by, meta.of. Did you mean "meta.of"? '
    with pytest.raises(UsageError) as error:
        build(tmp_path, "pairs", {"system": "meta.off"}, path, cut=cut)
    assert mend in str(error.value)


@pytest.mark.parametrize("cut", [0, 700])
def test_one_row_that_has_it_suffices(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "a.jsonl", [*without(ROWS[:-1], "by"), ROWS[-1] | {"by": None}])
    assert build(tmp_path, "pairs", {"chosen_model": "by"}, path, cut=cut).remarks == []


@pytest.mark.parametrize("cut", [0, 700])
def test_a_file_of_json_beside_others_that_have_it_is_a_remark(tmp_path: Path, cut: int) -> None:
    files = [write(tmp_path / "a.jsonl", ROWS[:5])]
    files += [write(tmp_path / f"{name}.jsonl", without(ROWS[n : n + 5], "by")) for n, name in ((5, "b"), (10, "c"))]
    (said,) = build(tmp_path, "pairs", {"chosen_model": "by"}, *files, cut=cut).remarks
    assert said == (
        'b.jsonl and 1 more: no row that was read has the column "by" ([[build.inputs]] pairs: chosen_model = "by").'
    )


def test_where_a_limit_may_have_cut_it_off_it_is_a_remark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*without(ROWS[:-1], "by"), ROWS[-1]])
    (said,) = build(tmp_path, "pairs", {"chosen_model": "by"}, path, limit=10).remarks
    assert said.startswith('a.jsonl: no row that was read has the column "by"')


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("option", ["model", "aspects"])
def test_columns_of_the_items_of_a_list(tmp_path: Path, name: str, option: str) -> None:
    path = write(tmp_path / name, LISTS)

    def options(column: str) -> dict[str, Any]:
        more = {"aspects": {"of": column}, "score_weights": {"of": 1.0}} if option == "aspects" else {option: column}
        return {**OF_LISTS, **more}

    assert build(tmp_path, "ratings", options("stars" if option == "aspects" else "who"), path).remarks == []
    with pytest.raises(UsageError) as error:
        build(tmp_path, "ratings", options("whom"), path)
    written = 'aspects.of = "whom"' if option == "aspects" else 'model = "whom"'
    place = path if name == "a.parquet" else "any row of a.jsonl"
    mend = f'{written}, but there is no such column in the items of "outputs" in {place}. There are text, stars, who. '
    assert mend + 'Did you mean "who"?' in str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_list_that_is_not_there_is_said_before_its_items(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, LISTS)
    with pytest.raises(UsageError, match=r'completions = "output", .* Did you mean "outputs"\?'):
        build(tmp_path, "ratings", OF_LISTS | {"completions": "output", "model": "who"}, path)


def test_lists_side_by_side_are_columns_of_the_row(tmp_path: Path) -> None:
    rows = [{"prompt": f"Is {n} odd?", "response": ["yes", "no"], "score": [n, 2], "who": ["a", "b"]} for n in range(9)]
    path = write(tmp_path / "a.jsonl", rows)
    assert build(tmp_path, "ratings", {"model": "who"}, path).remarks == []


def test_defaults_may_be_missing(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    other = [turns[0], {"role": "assistant", "content": "No."}]
    path = write(tmp_path / "a.jsonl", [{"chosen": turns, "rejected": other}])
    assert build(tmp_path, "pairs", {}, path).remarks == []
    path = write(tmp_path / "a.parquet", [{"chosen": turns, "rejected": other}])
    assert build(tmp_path / "out", "pairs", {"prompt": ""}, path).remarks == []


def test_a_schema_has_what_all_rows_leave_null(tmp_path: Path) -> None:
    meta = pa.array([None] * len(ROWS), pa.struct([("of", pa.string())]))
    table = pa.Table.from_pylist(without(ROWS, "meta")).append_column("meta", meta)
    pq.write_table(table, tmp_path / "a.parquet")
    assert build(tmp_path, "pairs", {"system": "meta.of"}, tmp_path / "a.parquet").remarks == []


def test_files_without_rows_lack_nothing(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("\n{}x\n")
    (tmp_path / "c.csv").write_text("")
    files = [write(tmp_path / "a.jsonl", ROWS), tmp_path / "b.jsonl", tmp_path / "c.csv"]
    said = build(tmp_path, "pairs", {"chosen_model": "by"}, *files).remarks
    assert len(said) == 2 and not any('"by"' in one for one in said)


def test_which_of_several_entries(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", without(ROWS, "meta"))
    entry = f'[[build.inputs]]\nuse = "pairs"\npaths = ["{path}"]\n'
    (tmp_path / "p.toml").write_text(f'{entry}{entry.replace("a.csv", "b.jsonl")}system = "bye"\n')
    write(tmp_path / "b.jsonl", ROWS)
    with pytest.raises(UsageError, match=r'pairs \(entry 2 of 2\): system = "bye"'):
        build_pairs(tmp_path / "p.toml", tmp_path / "out")


def talks(row: dict[str, Any], *, asked: Column, also: dict[str, Column] | None = None) -> Iterator[Rated]:
    """A source from outside that says which of its options name columns."""
    yield Rated([Message("user", str(row.get(asked)))], [Completion(k, f"a{k}", k) for k in (0, 1)], "talks")


def whole(rows: Sequence[Numbered], *, asked: Column) -> Iterator[Rated]:
    """The same of whole files."""
    for number, row in rows:
        answers = [Completion(k, f"a{k}", k, row=number) for k in (0, 1)]
        yield Rated([Message("user", str(row.get(asked)))], answers, "whole")


@pytest.mark.parametrize("use", [talks, whole])
def test_sources_from_outside(tmp_path: Path, use: Any) -> None:
    path, address = write(tmp_path / "a.jsonl", ROWS), f"{__name__}:{use.__name__}"
    assert build(tmp_path, address, {"asked": "prompt"}, path).remarks == []
    with pytest.raises(UsageError, match=r'asked = "promt", but there is no such column .* Did you mean "prompt"'):
        build(tmp_path, address, {"asked": "promt"}, path)


def test_what_names_a_column() -> None:
    given = {"completions": "outputs", "score": "stars", "system": "", "model": None, "aspects": {"a": "x", "b": "y"}}
    source = check("prefkit.pairs.sources.ratings:ratings", given, "here")
    inner = [Named("score", "stars", "outputs"), Named("aspects.a", "x", "outputs"), Named("aspects.b", "y", "outputs")]
    assert sorted(named(source)) == sorted([*inner, Named("completions", "outputs")])
    assert named(check("prefkit.pairs.sources.ultrafeedback:ultrafeedback", {"score": "fine_grained"}, "here")) == []


NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.integers(0, 1), lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=2), max_leaves=4
)
TABLES = st.lists(st.dictionaries(NAMES, VALUES, min_size=1), min_size=1, max_size=5)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(".".join)


@given(TABLES, st.lists(PATHS, unique=True, max_size=4))
def test_unmet_is_what_no_row_has(rows: list[dict[str, Any]], paths: list[str]) -> None:
    source = check(f"{__name__}:talks", {"asked": "a", "also": {path: path for path in paths}}, "here")
    unmet = Unmet(source)
    assert unmet.options is None
    for row in rows:
        unmet.look(row)
    gone = {path for path in paths if all(columns.get(row, path) is None for row in rows)}  # no value here is null
    assert set(unmet.options or []) - {"asked"} == {f"also.{path}" for path in gone}


@given(rows=TABLES, path=PATHS)
def test_a_schema_has_what_some_row_has(rows: list[dict[str, Any]], path: str, tmp_path_factory: Any) -> None:
    try:
        table = pa.Table.from_pylist([dict.fromkeys("abc") | row for row in rows])
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # a number here and a struct there
        return
    file = tmp_path_factory.getbasetemp() / "shape.parquet"
    pq.write_table(table, file)
    met = any(columns.get(row, path) is not None for row in rows)
    one = Named("x", path)
    assert one.is_in(_table(RawFile(str(file), "shape"))) == (met or path in "abc")
