"""The data set's README.md: a dataset card that the hub and `datasets` read, with the account of every row."""

from __future__ import annotations

import tomllib

from prefkit.manifest import Manifest
from prefkit.resolve import load, summary

WHAT = {
    "pairs": ("preference pairs", "`prompt`, `chosen` and `rejected` are message lists"),
    "labels": (
        "labelled answers",
        "`prompt` and `completion` are message lists, `label` is true for a good answer and false for a bad one",
    ),
}


def dataset_card(record: Manifest) -> str:
    """Markdown with YAML front matter that says which files are which split."""
    splits = [split for split in ("train", "test") if record.rows(split)]
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        lines += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    lines += ["tags:", "- preference", "- kto" if record.kind == "labels" else "- dpo", "- prefkit", "---", ""]
    what, columns = WHAT[record.kind]
    lines += [f"# {what.capitalize()}: {_plain(record.pipeline_name)}", ""]
    lines += [f"{_plain(description)}", ""] if (description := _description(record)) else []
    held = " and ".join(f"{record.rows(split):,} for {split}" for split in splits)
    lines += [
        f"{sum(record.rows(split) for split in splits):,} {what} ({held}), made by prefkit "
        f"{record.versions['prefkit']}. {columns}; TRL and `datasets` read them as they are.",
        "",
        f"Data hash: `{record.data_hash}`",
        "",
        "## Where the rows went",
        "",
        "| stage | unit | in | rejected | out |",
        "|---|---|--:|---|--:|",
    ]
    for stage in record.stages:
        reasons = ", ".join(f"{_plain(reason)} {count:,}" for reason, count in stage.rejected.items()) or "–"
        lines.append(f"| {stage.stage} | {stage.unit} | {stage.came_in:,} | {reasons} | {stage.went_out:,} |")
    lines += [
        "",
        "Every rejected row and candidate stands in `rejects/`, with its reason.",
        "",
        *(line for remark in record.remarks for line in (_plain(remark), "")),
        "`sketches/` serves `prefkit build-pairs --onto` alone; a copy of the data set needs it only to be added to.",
        "",
        "## How it was made",
        "",
    ]
    if record.generations:
        lines += [
            f"In {len(record.generations) + 1} builds, each onto the one before. This is the last; those before stand "
            "in `manifest.json`.",
            "",
        ]
    lines += [f"- {line}" for line in _functions(record)]
    lines += ["", "## Made from", "", "| file | bytes | rows | SHA-256 |", "|---|--:|--:|---|"]
    lines += [f"| {_plain(f.path)} | {f.bytes:,} | {f.rows:,} | `{f.sha256}` |" for f in record.inputs]
    lines += ["", "## Pipeline file", "", "```toml", record.pipeline.replace("```", "` ` `").rstrip(), "```"]
    if record.overrides:
        lines += ["", "with " + ", ".join(f"`--set {_plain(override)}`" for override in record.overrides)]
    return "\n".join(lines) + "\n"


def _description(record: Manifest) -> str:
    return str(tomllib.loads(record.pipeline).get("description", ""))


def _functions(record: Manifest) -> list[str]:
    options = record.options
    makes = "labels" if record.kind == "labels" else "binarize"
    single = [options[name] for name in ("redact", "language", "decontaminate", "dedupe", makes)]
    single += [options["balance"] if options["balance"]["max_longer_share"] is not None else False, options["split"]]
    rows = [*options["inputs"], *options["filters"], *(row for row in single if row)]
    described = []
    for row in rows:
        settings = ", ".join(
            f"{name} = {value!r}" for name, value in row.items() if name != "use" and value is not None
        )
        with_settings = f" {_plain(f'({settings})')}" if settings else ""
        described.append(f"`{row['use'].rpartition(':')[2]}`: {summary(load(row['use']))}{with_settings}")
    if excluded := options["exclude"]:
        described.append(f"`exclude`: Leave out the pairs that a person flagged. {_plain(f'(flags = {excluded!r})')}")
    return described


def _plain(text: str) -> str:
    """Text that cannot break out of a table cell or a line of Markdown."""
    for mark in "\\|[]!<*_":
        text = text.replace(mark, f"&#{ord(mark)};")
    return " ".join(text.replace("`", "'").split())
