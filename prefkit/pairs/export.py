"""`prefkit export`: a finished data set -> a folder of the files that another trainer reads.

    shards.. -> batches of pairs -> the pairs of one prompt -> a function of `prefkit.pairs.formats` -> JSON lines

Rows stream through, so memory is one batch and one prompt whatever the size of the data set; it is one process, at
about 50,000 pairs a second. Every shard is first compared with its hash in the manifest. All files are written in a
scratch folder beside OUT, which takes OUT's place by rename when they are complete: a failed or killed export leaves
OUT as it was. Equal data sets give equal bytes. `export.json` says what the folder was made from and what is in it.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pyarrow.parquet as pq

import prefkit
from prefkit import manifest
from prefkit.errors import DataError, UsageError, did_you_mean
from prefkit.manifest import Manifest, Shard
from prefkit.pairs import card, formats
from prefkit.pairs.formats import LeftOut, Pair, Record
from prefkit.progress import Stages
from prefkit.resolve import functions_of, summary

FILE_NAME = manifest.EXPORT
BATCH_ROWS = 1000
Format = Callable[[Sequence[Pair]], Iterator[Record | LeftOut]]
COUNTS = ("rows", "records", "left_out")


def export(
    data: Path,
    out: Path,
    *,
    format: str,
    split: str = "all",
    leave_out: bool = False,
    overwrite: bool = False,
    progress: Stages | None = None,
) -> dict[str, Any]:
    """Write the pairs of a finished data set to folder `out` in the given format; returns the content of export.json.

    `split` is train, test or all. DataError where the format cannot hold something, with its number and an example,
    unless `leave_out`: then it is left out and counted. UsageError where `out` is not empty, but for an earlier export
    where `overwrite` is given.
    """
    record = manifest.read(data)
    function = getattr(formats, _checked_name(format))
    _check_kind(record, format, data)
    splits = _splits(record, split, data)
    out = out.resolve()
    _check_out(out, data.resolve(), overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        done = {name: _write_split(data, record, name, new, function, progress) for name in splits}
        _judge(format, done, leave_out)
        made = {"export": 1, "format": format, "kind": record.kind, "data_hash": record.data_hash}
        made["prefkit"] = prefkit.__version__
        made["splits"] = {name: {key: counts[key] for key in COUNTS} for name, counts in done.items()}
        _write_beside(new, made)
        if out.exists():
            out.rename(Path(scratch) / "old")
        new.rename(out)
    return made


def names() -> list[str]:
    """The values of --format."""
    return [name.replace("_", "-") for name in functions_of(formats)]


def _check_kind(record: Manifest, format: str, data: Path) -> None:
    if record.kind == "conversations":
        raise UsageError(f"{data}: holds conversations of prefkit adopt, and an export is made of pairs or labels.")
    if record.kind == "labels" and format not in formats.OF_LABELS:
        raise UsageError(
            f"{data}: holds labels, and --format {format} is of pairs. Choose {' or '.join(formats.OF_LABELS)}."
        )


def _checked_name(format: str) -> str:
    if format not in names():
        raise UsageError(f'--format: there is no "{format}".{did_you_mean(format, names())}')
    return format.replace("-", "_")


def read(folder: Path) -> dict[str, Any]:
    """The export.json of an export; DataError where there is none that this version can read."""
    path = folder / FILE_NAME
    try:
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if made["export"] != 1 or not all(Path(name).name == name for name in made["files"]):
            raise ValueError
    except FileNotFoundError:
        raise DataError(f"{folder}: no {FILE_NAME}, so this is not an export of prefkit.") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: damaged, or of another version of prefkit. Export again.") from None
    return made


def _splits(record: Manifest, split: str, data: Path) -> list[str]:
    wanted = ["train", "test"] if split == "all" else [split]
    splits = [name for name in wanted if record.rows(name)]
    if not splits:
        raise UsageError(f"{data}: has no {split} {record.kind} to export.")
    return splits


def _check_out(out: Path, data: Path, overwrite: bool) -> None:
    if out == data or data in out.parents:
        raise UsageError(f"{out}: lies in the data set; choose another --out.")
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out}: is a file; choose another --out.")
    present = {path.name for path in out.iterdir()}
    if not present:
        return
    try:
        files = read(out)["files"]
    except DataError:
        raise UsageError(f"{out}: is not empty, and no export of prefkit; choose an empty or new folder.") from None
    if foreign := sorted(present - set(files) - {FILE_NAME}):
        raise UsageError(f"{out / foreign[0]}: is not of an export of prefkit; move it away, or choose another --out.")
    if not overwrite:
        raise UsageError(f"{out}: holds an export. Add --overwrite to replace it, or choose another --out.")


def _write_split(
    data: Path, record: Manifest, split: str, folder: Path, function: Format, progress: Stages | None
) -> dict[str, Any]:
    """Write SPLIT.jsonl; its rows, records, what was left out by reason, and an example of each reason."""
    encoder = msgspec.json.Encoder()
    rows = records = 0
    left_out: Counter[str] = Counter()
    examples: dict[str, str] = {}
    if progress:
        progress.stage(f"export {split}", record.rows(split))
    with open(folder / f"{split}.jsonl", "wb") as file:
        for prompt in _prompts(_rows(data, record.of_split(split))):
            lines = []
            for item in function(prompt):
                if isinstance(item, LeftOut):
                    left_out[item.reason] += 1
                    examples.setdefault(item.reason, item.detail)
                else:
                    lines.append(item)
            file.write(encoder.encode_lines(lines))
            records += len(lines)
            rows += len(prompt)
            if progress:
                progress.advance(len(prompt), rows=len(prompt))
    return {"rows": rows, "records": records, "left_out": dict(sorted(left_out.items())), "examples": examples}


def _rows(data: Path, shards: list[Shard]) -> Iterator[Pair]:
    """The pairs of some shards, in order; DataError for a shard that is not what the manifest says."""
    for shard in shards:
        check_file(data / shard.path, shard.sha256)
        for batch in pq.ParquetFile(data / shard.path).iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()


def check_file(path: Path, sha256: str) -> None:
    """DataError if a file is missing or its content is not the recorded one."""
    if not path.is_file() or manifest.file_sha256(path) != sha256:
        raise DataError(f"{path}: missing or changed since it was written. prefkit verify tells more.")


def _prompts(rows: Iterator[Pair]) -> Iterator[list[Pair]]:
    """The pairs of one prompt at a time. Equal prompt_ids are adjacent, but may stand for texts that differ in case or
    white space, which are prompts of their own here."""
    for _, same_id in groupby(rows, key=itemgetter("prompt_id")):
        by_text: dict[str, list[Pair]] = {}
        for pair in same_id:
            by_text.setdefault(repr(pair["prompt"]), []).append(pair)
        yield from by_text.values()


def _judge(format: str, done: dict[str, dict[str, Any]], leave_out: bool) -> None:
    """DataError if something was left out unasked, or if nothing is left."""
    lost = Counter[str]()
    for each in done.values():
        lost.update(each["left_out"])
    if lost and not leave_out:
        examples: dict[str, str] = {}
        for each in done.values():
            examples = each["examples"] | examples
        what = "; ".join(f"{reason} {count:,} (for example, {examples[reason]})" for reason, count in lost.items())
        unit = "completions" if format == "kto" else "pairs"
        raise DataError(
            f"--format {format} cannot hold {lost.total():,} {unit}: {what}. "
            "Add --leave-out to export the others, or choose another format."
        )
    if not any(each["records"] for each in done.values()):
        raise DataError(f"--format {format}: nothing is left to export.")


def _write_beside(folder: Path, made: dict[str, Any]) -> None:
    """Write what a trainer and a reader need besides the data, and export.json last; adds the files to `made`."""
    for split in made["splits"].keys() - set(_written(made)):
        (folder / f"{split}.jsonl").unlink()  # no loader takes an empty file
    if made["format"] == "llamafactory":
        (folder / "dataset_info.json").write_text(_dumps(_dataset_info(_written(made))), encoding="utf-8")
    (folder / "README.md").write_text(_readme(made), encoding="utf-8")
    made["files"] = {path.name: _facts(path) for path in sorted(folder.iterdir())}
    (folder / FILE_NAME).write_text(_dumps(made), encoding="utf-8")


def _written(made: dict[str, Any]) -> list[str]:
    """The splits that have a file."""
    return [split for split, counts in made["splits"].items() if counts["records"]]


def _dataset_info(splits: list[str]) -> dict[str, Any]:
    """LLaMA-Factory's description of the files, by which they are named in `dataset:`."""
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entry = {"formatting": "sharegpt", "ranking": True, "columns": columns}
    return {f"prefkit_{split}": {"file_name": f"{split}.jsonl", **entry} for split in splits}


def usage(format: str, splits: list[str], out: str) -> str:
    """How a trainer takes the files: the docstring of the format without its first line, filled in."""
    text = (inspect.getdoc(getattr(formats, _checked_name(format))) or "").partition("\n\n")[2]
    for split in ("train", "test"):
        if split not in splits:
            text = "\n\n".join(part for part in text.split("\n\n") if f"{{{split}}}" not in part)
        text = text.replace(f"{{{split}}}", f"{out}/{split}.jsonl")
    return text.replace("{out}", out)


def report(made: dict[str, Any], out: Path) -> str:
    """What was written, what was left out, and how a trainer takes it."""
    lines = []
    for split, counts in made["splits"].items():
        lines.append(f"{out}/{split}.jsonl: {counts['records']:,} records of {counts['rows']:,} {made['kind']}")
        lines += [f"  left out: {reason} {count:,}" for reason, count in counts["left_out"].items()]
    return "\n".join([*lines, "", usage(made["format"], _written(made), str(out))])


def _readme(made: dict[str, Any]) -> str:
    """A dataset card, by which `datasets` and the Hub find the splits."""
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in _written(made):
        lines += [f"  - split: {split}", f"    path: {split}.jsonl"]
    title = f"# {card.WHAT[made['kind']][0].capitalize()} for {made['format']}"
    lines += ["tags:", "- preference", "- prefkit", "---", "", title, ""]
    lines += [summary(getattr(formats, _checked_name(made["format"]))), ""]
    lines += [f"Made by prefkit {made['prefkit']} from the data set with hash `{made['data_hash']}`.", ""]
    lines += [f"| file | {made['kind']} | records | left out |", "|---|--:|--:|---|"]
    for split, counts in made["splits"].items():
        left = ", ".join(f"{reason} {count:,}" for reason, count in counts["left_out"].items()) or "–"
        lines.append(f"| {split}.jsonl | {counts['rows']:,} | {counts['records']:,} | {left} |")
    return "\n".join([*lines, "", usage(made["format"], _written(made), "."), ""])


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": manifest.file_sha256(path)}


def _dumps(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
