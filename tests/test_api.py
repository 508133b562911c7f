"""`import prefkit`: the names that it gives, what they cost, and that a type checker sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import prefkit
from prefkit import manifest
from prefkit.errors import DataError, UsageError
from prefkit.extras import install
from prefkit.schema import PAIRS, REJECTS
from tests.conftest import PROJECT
from tests.pairs.raw import dirty_lines, write_lines

HEAVY = {"torch", "transformers", "polars", "pyarrow", "numpy", "rich", "pydantic", "numba"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    raw = write_lines(folder / "raw.jsonl", dirty_lines(150))
    pipeline = prefkit.load_pipeline("ultrafeedback", ["build.split.test=0.2"])
    prefkit.build_pairs(pipeline, str(folder / "data"), given=[str(raw)])
    return folder / "data"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_instant_and_loads_a_half_when_it_is_used() -> None:
    loaded = f"print(sorted({HEAVY} & set(sys.modules)))"
    assert python(f"import sys, prefkit; dir(prefkit); prefkit.train; {loaded}") == "[]"
    assert "torch" not in python(f"import sys, prefkit; prefkit.build_pairs, prefkit.load_pairs; {loaded}")


def test_every_name_is_there_and_no_other() -> None:
    for name in prefkit.__all__:
        assert callable(getattr(prefkit, name)), name
        assert name in dir(prefkit)
        assert getattr(prefkit, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'build_pair'"):
        _ = prefkit.build_pair  # type: ignore[attr-defined]


def test_train_can_be_called_whatever_was_imported_before() -> None:
    """A package and a function share the name; importing the one must not hide the other."""
    code = "import prefkit; first = prefkit.train; import prefkit.train; from prefkit import train"
    assert python(f"{code}; print(callable(first), train is first is prefkit.train)") == "True True"
    import prefkit.train.length

    with pytest.raises(UsageError, match="neither a file nor a shipped pipeline"):
        prefkit.train("no-such-pipeline", data="x", out="y")


def test_without_torch_the_names_of_training_say_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nimport prefkit; prefkit.load_pairs\n"
        "try: prefkit.PairStream\nexcept ImportError as error: print(error)"
    )
    assert python(code) == f"prefkit.PairStream needs torch: {install('train')}."


def test_type_checkers_see_signatures(tmp_path: Path) -> None:
    """As a user's own program, checked by mypy: right calls pass, wrong ones do not."""
    assert (Path(prefkit.__file__).parent / "py.typed").exists()
    program = tmp_path / "program.py"
    right = (
        "from pathlib import Path\nimport prefkit\nfrom prefkit.train.policy import ready\n"
        "rows: int = prefkit.build_pairs('ratings', Path('out'), given=['raw.jsonl']).rows('train')\n"
        "prefkit.load_pairs('out', 'test').collect()\n"
        "for step in prefkit.PairStream('out', None, seed=1):\n    n: int = step.examples\n"
        "batch = prefkit.PackingCollator(None, max_tokens=64)([])\nbatch['pairs'] + 1\n"
        "prefkit.train('zephyr-7b-dpo', data='out', out='run')\n"
    )
    wrong = [
        ("prefkit.load_pairs('out', 'tset')", "arg-type"),
        ("prefkit.train('x', dat='out', out='run')", "call-arg"),
        ("prefkit.PackingCollator(None, max_tokens='8k')", "arg-type"),
        ("prefkit.build_pair", "attr-defined"),
    ]
    program.write_text(right + "".join(f"{line}\n" for line, _ in wrong))
    command = [sys.executable, "-m", "mypy", "--config-file", str(PROJECT / "pyproject.toml"), "--no-pretty"]
    found = subprocess.run([*command, str(program)], capture_output=True, text=True, cwd=PROJECT).stdout
    first = right.count("\n") + 1
    errors = [line for line in found.splitlines() if " error: " in line]
    assert len(errors) == len(wrong), found
    for number, (_, code) in enumerate(wrong):
        assert f"program.py:{first + number}: error:" in errors[number]
        assert f"[{code}]" in errors[number]


def test_what_build_pairs_takes_and_what_not(tmp_path: Path) -> None:
    raw = write_lines(tmp_path / "raw.jsonl", dirty_lines(40))
    more = write_lines(tmp_path / "more.jsonl", dirty_lines(40, seed=1))
    hashes = {
        prefkit.build_pairs("ultrafeedback", tmp_path / str(number), given=given).data_hash
        for number, given in enumerate([raw, str(raw), [raw], (str(raw),)])
    }
    assert len(hashes) == 1
    added = [
        prefkit.build_pairs("ultrafeedback", tmp_path / kind.__name__, given=more, onto=kind(tmp_path / "0"))
        for kind in (str, Path)
    ]
    assert added[0].data_hash == added[1].data_hash != hashes.pop()
    with pytest.raises(
        UsageError, match=r"s3://bucket/set: out is a folder of this machine; a URL is given as upload_to"
    ):
        prefkit.build_pairs("ultrafeedback", "s3://bucket/set", given=raw)
    with pytest.raises(UsageError, match="out is empty; it is the folder for the data set"):
        prefkit.build_pairs("ultrafeedback", "", given=raw)
    with pytest.raises(UsageError, match="the name of the pipeline is empty"):
        prefkit.build_pairs("", tmp_path / "nameless", given=raw)
    for limit in (0, -3):
        with pytest.raises(UsageError, match=f"limit = {limit}: it must be at least 1"):
            prefkit.build_pairs("ultrafeedback", tmp_path / "limit", given=raw, limit=limit)


def test_load_pairs_gives_the_rows_that_the_manifest_lists(data: Path) -> None:
    record = manifest.read(data)
    for split, schema in (("train", PAIRS), ("test", PAIRS), ("rejects", REJECTS)):
        rows = prefkit.load_pairs(data, split)
        assert isinstance(rows, pl.LazyFrame)
        assert rows.select(pl.len()).collect().item() == record.rows(split) > 0
        assert rows.collect_schema().names() == schema.names
    files = [str(data / shard.path) for shard in record.of_split("train")]
    assert prefkit.load_pairs(str(data)).collect().equals(pl.read_parquet(files))
    (data / "data" / "train-stray.parquet").write_bytes((data / record.of_split("test")[0].path).read_bytes())
    assert prefkit.load_pairs(data).select(pl.len()).collect().item() == record.rows("train")
    (data / "data" / "train-stray.parquet").unlink()


def test_load_pairs_refuses_what_is_not_whole(data: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(DataError, match="no such folder"):
        prefkit.load_pairs(tmp_path / "none")
    with pytest.raises(UsageError, match="local folder"):
        prefkit.load_pairs("s3://bucket/data?secret=1")
    with pytest.raises(UsageError, match='split = "tset"'):
        prefkit.load_pairs(data, "tset")  # type: ignore[arg-type]
    shutil.copytree(data, tmp_path / "copy")
    shard = next((tmp_path / "copy" / "data").glob("train-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="not the file that the manifest lists"):
        prefkit.load_pairs(tmp_path / "copy")
    shard.unlink()
    with pytest.raises(DataError, match="missing"):
        prefkit.load_pairs(tmp_path / "copy")
