"""`prefkit why DIR ROW_OR_ID`: what happened to one raw row, prompt, pair or labelled answer of a finished data set.

    asked ─▶ a row, a prompt or a pair ─▶ its pairs (or labels) and rejects ─▶ the other rows of its clusters

It works from the Parquet files alone. Each question is a filter that polars pushes into the scan: of all rows only the
few columns that the filter names are read, row groups whose statistics exclude an id are skipped, and no more than
some row groups are in memory at a time. Of texts nothing but the beginning leaves the scan. An answer costs two or
three such scans, so about what it takes to decompress the columns of origin: a second for some millions of pairs.

Rows are counted from 1, in raw files as in shards; answers from 0, as in their raw row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prefkit import manifest, schema
from prefkit.errors import DataError, UsageError, one_line
from prefkit.manifest import Manifest
from prefkit.pairs import tables
from prefkit.pairs.read import keys_of
from prefkit.pairs.select import scrambled
from prefkit.pairs.text import uniform

HEAD = 80  # characters of a text that are shown
RAW_HEAD = 200  # bytes of a row that could not be read
MOST = 20  # rows of a cluster, or matches, that are listed
FEWEST_DIGITS, ID_DIGITS = 6, 32
OTHER = {"chosen": "rejected", "rejected": "chosen"}
UNITS = {"pair": "pairs", "answer": "labels"}  # what has an id of its own, by the kind of a data set
PLACE = {"split": pl.String, "shard": pl.String, "shard_row": pl.UInt32}


def why(folder: Path, asked: str) -> dict[str, Any]:
    """What happened to what `asked` names, as JSON-able facts: `rows` with their candidates, `pairs` or `labels`,
    `clusters`.

    `asked` is FILE:ROW (any unique end of the recorded file name), ROW alone where there is one input file, or a
    prompt_id, pair_id or answer_id (or at least its first six digits). Where it names several things, the facts are
    only their `matches`. Raises DataError where it names nothing, and UsageError where it is none of these.
    """
    record = manifest.read(folder)
    if record.kind == "conversations":
        raise DataError(
            f"{folder}: holds conversations of prefkit adopt, of which no row fell; there is nothing to ask."
        )
    unit = next(unit for unit, kind in UNITS.items() if kind == record.kind)
    kept, rejects = _scan(folder, record, "train", "test"), _scan(folder, record, "rejects")
    matches = [*_rows_named(record, kept, rejects, asked), *_ids_named(unit, kept, rejects, asked)]
    if not matches:
        raise DataError(f"{folder}: {_nothing(record, asked)}")
    if len(matches) > 1:
        return {"asked": asked, "matches": [f"{kind} {_shown(name)}" for kind, name in matches]}
    ((kind, name),) = matches
    in_kept, in_rejects = _filters(kind, name, record)
    holding = {row["shard"] for row in _collect(kept.filter(in_kept).select("shard").unique())}
    texts = _scan(folder, record, "train", "test", only=holding)  # of a few files, not of all
    found = [_with_reason(one, record) for one in _collect(texts.filter(in_kept).select(**_shown_columns(record)))]
    fallen = [] if kind == unit else _collect(rejects.filter(in_rejects).select(**_REJECT))
    rows = [] if kind == unit else _rows(found, fallen, kind, name, record)
    clusters = sorted({each["cluster_id"] for each in [*found, *fallen]} - {None})
    own = {(one["file"], one["row"]) for one in rows} or {
        (found[0][f"{side}_file"], found[0][f"{side}_row"]) for side in schema.SIDES[record.kind]
    }
    others = _clusters(kept, rejects, clusters, own, record) if clusters else []
    facts = {"rows": rows, record.kind: found, "clusters": others}
    return {"asked": asked, "kind": kind, "name": _shown(name), **facts}


def _scan(folder: Path, record: Manifest, *splits: str, only: Container[str] | None = None) -> pl.LazyFrame:
    """The rows of some splits, or `only` of some shards of them, with the shard that each stands in and its row
    there."""
    kind = schema.TABLES["rejects" if "rejects" in splits else record.kind]
    nothing = tables.empty(kind).with_columns(pl.lit(None, kind).alias(name) for name, kind in PLACE.items())
    frames = [nothing.lazy()]
    for shard in record.shards:
        if shard.split in splits and (only is None or shard.path in only):
            rows = pl.scan_parquet(folder / shard.path, row_index_name="shard_row", row_index_offset=1)
            frames.append(rows.with_columns(split=pl.lit(shard.split), shard=pl.lit(shard.path)))
    return pl.concat(frames, how="diagonal_relaxed")


def _collect(rows: pl.LazyFrame) -> list[dict[str, Any]]:
    try:
        return rows.collect(engine="streaming").to_dicts()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"a file of the data set cannot be read ({one_line(error)}). See prefkit verify.") from error


def _head(text: pl.Expr) -> pl.Expr:
    return text.list.last().struct.field("content").str.slice(0, HEAD)


def _shown_columns(record: Manifest) -> dict[str, pl.Expr]:
    """What is shown of a pair or a labelled answer: of texts their beginning, and the place in the shard."""
    texts = ("prompt", *schema.SIDES[record.kind])
    names = [*schema.TABLES[record.kind].names, *PLACE]
    return {name: _head(pl.col(name)) if name in texts else pl.col(name) for name in names}


_REJECT = {
    **{name: pl.col(name) for name in schema.REJECTS.names},
    "raw": pl.col("raw").bin.head(RAW_HEAD),
}


def _row_is(name: tuple[str, int], side: str) -> pl.Expr:
    return (pl.col(f"{side}_file") == name[0]) & (pl.col(f"{side}_row") == name[1])


def _filters(kind: str, name: Any, record: Manifest) -> tuple[pl.Expr, pl.Expr]:
    """Of PAIRS or LABELS and of REJECTS: which rows a match is about."""
    if kind == "row":
        sides = (_row_is(name, side) for side in schema.SIDES[record.kind])
        return pl.any_horizontal(*sides), _row_is(name, "origin")
    return pl.col(f"{kind}_id") == name, pl.col("prompt_id") == name


def _rows_named(
    record: Manifest, kept: pl.LazyFrame, rejects: pl.LazyFrame, asked: str
) -> Iterator[tuple[str, tuple[str, int]]]:
    """The raw rows that FILE:ROW, or ROW alone, may mean and that the data set knows."""
    end, colon, digits = asked.rpartition(":")
    names = [file.path for file in record.inputs]
    if not digits.isdecimal() or len(digits) > 18 or (not colon and len(names) > 1):
        return
    for file in [name for name in names if name == end] or [name for name in names if name.endswith(end)]:
        in_kept, in_rejects = _filters("row", (file, int(digits)), record)
        known = (rows.filter(keep).select(pl.len()) for rows, keep in ((kept, in_kept), (rejects, in_rejects)))
        if any(_collect(count)[0]["len"] for count in known):
            yield "row", (file, int(digits))


def _ids_named(unit: str, kept: pl.LazyFrame, rejects: pl.LazyFrame, asked: str) -> Iterator[tuple[str, str]]:
    """The pairs (or labelled answers) and prompts whose id begins with what was asked for."""
    low = asked.lower()
    if not FEWEST_DIGITS <= len(low) <= ID_DIGITS or set(low) - set("0123456789abcdef"):
        return
    for kind, tables_of_kind in ((unit, [kept]), ("prompt", [kept, rejects])):
        name = f"{kind}_id"
        begins = pl.col(name).is_between(pl.lit(low), pl.lit(low.ljust(ID_DIGITS, "f")))  # a range uses statistics
        found = {row[name] for rows in tables_of_kind for row in _collect(rows.filter(begins).select(name).unique())}
        yield from ((kind, identity) for identity in sorted(found))


def _nothing(record: Manifest, asked: str) -> str:
    """Why nothing matched, in one sentence; UsageError where it could not have."""
    end, colon, digits = asked.rpartition(":")
    names = [file.path for file in record.inputs]
    if digits.isdecimal() and (colon or len(names) == 1):
        files = [file for file in record.inputs if file.path.endswith(end)]
        if not files:
            raise UsageError(f'no input file ends with "{end}". The inputs: {_list(names)}.')
        counts = _list([f"{file.path} has {file.rows:,} rows" for file in files])
        return f"no row {digits} ({counts}; blank lines are counted as lines but are no rows)."
    if digits.isdecimal() and len(digits) < FEWEST_DIGITS:
        raise UsageError(f"row {digits} of which file? Write FILE:ROW. The inputs: {_list(names)}.")
    if colon or not FEWEST_DIGITS <= len(asked) <= ID_DIGITS or set(asked.lower()) - set("0123456789abcdef"):
        raise UsageError(
            f'"{asked}" is neither FILE:ROW nor {FEWEST_DIGITS} to {ID_DIGITS} hexadecimal digits of an id.'
        )
    return f"no {schema.IDS[record.kind]} and no prompt_id of it begins with {asked}."


def _list(names: list[str]) -> str:
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST:,} more" if len(names) > MOST else "")


def _shown(name: Any) -> str:
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


def _with_reason(one: dict[str, Any], record: Manifest) -> dict[str, Any]:
    """A pair or labelled answer with the draw of its cluster in [0, 1), which decides the split, and the share that
    it is compared to."""
    split = record.options["split"]
    seeded = keys_of(pl.Series([one["cluster_id"]])) ^ np.uint64(uniform(str(split["seed"]), "split"))
    return one | {"draw": float(scrambled(seeded)[0] / 2**64), "test_share": split["test"]}


def _rows(
    kept: list[dict[str, Any]], rejects: list[dict[str, Any]], kind: str, name: Any, record: Manifest
) -> list[dict[str, Any]]:
    """The raw rows that a match is about, with the fate of each of their candidates, in order."""
    found: dict[tuple[str, int], dict[int, dict[str, Any]]] = defaultdict(dict)
    unread: dict[tuple[str, int], dict[str, Any]] = {}
    for one in kept:
        for side in schema.SIDES[record.kind]:
            where = one[f"{side}_file"], one[f"{side}_row"]
            if kind != "row" or where == name:
                identity = {name: one[name] for name in ("prompt_id", "cluster_id")}
                fresh = identity | {"text": one[side], record.kind: []}
                candidate = found[where].setdefault(one[f"{side}_index"], fresh)
                candidate[record.kind].append(_partner(one, side) if side in OTHER else _label(one))
    for reject in rejects:
        where = reject["origin_file"], reject["origin_row"]
        fate = {name: reject[name] for name in ("stage", "reason", "detail")}
        if reject["completion_index"] is None:
            unread[where] = fate | {"raw": (reject["raw"] or b"").decode(errors="backslashreplace")}
        else:
            identity = {name: reject[name] for name in ("prompt_id", "cluster_id")}
            found[where][reject["completion_index"]] = identity | {"rejected": fate}
    return [
        {
            "file": file,
            "row": row,
            "rejected": unread.get((file, row)),
            "candidates": [{"index": index, **fate} for index, fate in sorted(found[file, row].items())],
        }
        for file, row in sorted({*found, *unread})
    ]


def _partner(pair: dict[str, Any], side: str) -> dict[str, Any]:
    partner = {f"partner_{name}": pair[f"{OTHER[side]}_{name}"] for name in ("file", "row", "index")}
    return {"side": side, **partner, **{name: pair[name] for name in ("pair_id", "margin", *PLACE)}}


def _label(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in ("label", "completion_score", "answer_id", *PLACE)}


def _clusters(
    kept: pl.LazyFrame, rejects: pl.LazyFrame, wanted: list[str], own: set[tuple[str, int]], record: Manifest
) -> list[dict[str, Any]]:
    """Of some clusters how many raw rows they have, and which others than `own`, with what dedupe said of them."""
    identity = ["cluster_id", "file", "row", "prompt_id"]
    mine = pl.col("cluster_id").is_in(wanted)
    said = pl.when(pl.col("stage") == "dedupe")
    rows = [
        kept.filter(mine).select("cluster_id", "prompt_id", file=f"{side}_file", row=f"{side}_row")
        for side in schema.SIDES[record.kind]
    ]
    rows.append(
        rejects.filter(mine).select(
            "cluster_id", "prompt_id", file="origin_file", row="origin_row", reason=said.then("reason"),
            detail=said.then("detail"),
        )
    )  # fmt: skip
    together = pl.concat(rows, how="diagonal").group_by(identity).agg(pl.col("reason", "detail").drop_nulls().first())
    clusters: dict[str, dict[str, Any]] = {
        name: {"cluster_id": name, "rows": 0, "others": [], "more": 0} for name in wanted
    }
    for row in _collect(together.sort(identity)):
        cluster = clusters[row.pop("cluster_id")]
        cluster["rows"] += 1
        if (row["file"], row["row"]) not in own:
            cluster["others"].append(row | {"first": row["prompt_id"] == cluster["cluster_id"]})
    for cluster in clusters.values():
        cluster["others"].sort(key=lambda row: (row["reason"] is not None, not row["first"]))
        cluster["more"] = len(cluster["others"][MOST:])
        del cluster["others"][MOST:]
    return list(clusters.values())


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The facts as lines for a terminal; whatever stands in the data, each is printable text."""
    for line in _lines(facts):
        yield printable(line)


def printable(text: str) -> str:
    """The text with each character that is none to be seen, such as those that steer a terminal, as its escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    if "matches" in facts:
        yield from facts["matches"][:MOST]
        if len(facts["matches"]) > MOST:
            yield f"and {len(facts['matches']) - MOST:,} more"
        return
    for row in facts["rows"]:
        yield from _row_lines(row)
    for pair in facts.get("pairs", []):
        yield from _pair_lines(pair)
    for answer in facts.get("labels", []):
        yield from _label_lines(answer)
    for cluster in facts["clusters"]:
        yield from _cluster_lines(cluster)
    if not facts["clusters"]:
        yield "no cluster: all of it fell before near-duplicates were looked for"


def _row_lines(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"{row['file']}, row {row['row']}"
    if row["rejected"]:
        yield f"  whole row: {_fate(row['rejected'])}"
        if row["rejected"]["raw"]:
            yield f"    it begins: {row['rejected']['raw']}"
    last = None
    for candidate in row["candidates"]:
        if candidate["prompt_id"] != last:
            last = candidate["prompt_id"]
            yield f"  prompt_id {last}"
        if "rejected" in candidate:
            yield f"  answer {candidate['index']}: {_fate(candidate['rejected'])}"
            continue
        yield f"  answer {candidate['index']}: “{candidate['text']}”"
        for label in candidate.get("labels", []):
            yield f"    {_good(label)}, score {label['completion_score']:g}: answer {label['answer_id']}"
            yield f"    in {label['shard']}, row {label['shard_row']}"
        for pair in candidate.get("pairs", []):
            other = f"answer {pair['partner_index']}"
            if (pair["partner_file"], pair["partner_row"]) != (row["file"], row["row"]):
                other += f" of {pair['partner_file']}, row {pair['partner_row']}"
            against = "over" if pair["side"] == "chosen" else "against"
            yield f"    {pair['side']} {against} {other}, margin {pair['margin']:g}: pair {pair['pair_id']}"
            yield f"    in {pair['shard']}, row {pair['shard_row']}"


def _fate(rejected: Mapping[str, Any]) -> str:
    detail = f" ({rejected['detail']})" if rejected["detail"] else ""
    return f"rejected at {rejected['stage']}, {rejected['reason']}{detail}"


def _pair_lines(pair: Mapping[str, Any]) -> Iterator[str]:
    yield f"pair {pair['pair_id']}"
    yield f"  in {pair['shard']}, row {pair['shard_row']}; source {pair['source']}; paired by {pair['strategy']}"
    yield f"  prompt “{pair['prompt']}”, prompt_id {pair['prompt_id']}"
    for side in OTHER:
        yield from _side_lines(pair, side)
    yield f"  margin {pair['margin']:g}; {_why_split(pair)}"


def _label_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    yield f"answer {answer['answer_id']}, {_good(answer)}"
    yield f"  in {answer['shard']}, row {answer['shard_row']}; source {answer['source']}"
    yield f"  prompt “{answer['prompt']}”, prompt_id {answer['prompt_id']}"
    yield from _side_lines(answer, "completion")
    yield f"  {_why_split(answer)}"


def _good(answer: Mapping[str, Any]) -> str:
    return "desirable" if answer["label"] else "undesirable"


def _side_lines(one: Mapping[str, Any], side: str) -> Iterator[str]:
    yield f"  {side} “{one[side]}”"
    model = f", by {one[f'{side}_model']}" if one[f"{side}_model"] else ""
    where = f"{one[f'{side}_file']}, row {one[f'{side}_row']}, answer {one[f'{side}_index']}"
    yield f"    {where}{model}, score {one[f'{side}_score']:g}"


def _why_split(one: Mapping[str, Any]) -> str:
    below = "below" if one["split"] == "test" else "not below"
    draws = f"because its cluster draws {one['draw']:.6f}, {below} the share {one['test_share']:g} of test"
    return f"in {one['split']}, {draws}"


def _cluster_lines(cluster: Mapping[str, Any]) -> Iterator[str]:
    count = len(cluster["others"]) + cluster["more"]
    rows = f"{count:,} other row{'s' * (count != 1)}" if count else "no other row"
    yield f"cluster {cluster['cluster_id']}: {rows}"
    for row in cluster["others"]:
        first = "; the first of the cluster" if row["first"] and not row["reason"] else ""
        said = f"; {row['reason']} ({row['detail']})" if row["reason"] else ""
        yield f"  {row['file']}, row {row['row']}; prompt_id {row['prompt_id']}{first}{said}"
    if cluster["more"]:
        yield f"  and {cluster['more']:,} more"
