"""The loss curve of TRL's own trainer on the same batches: nothing between raw text and updated weights differs."""

from argparse import Namespace

import numpy as np
import pytest

from tests.benchmarks import train
from tests.train.datasets_for_tests import TINY, toy_pairs, write_data_set


@pytest.mark.slow
def test_loss_curve_is_that_of_trl(tmp_path, monkeypatch):
    pytest.importorskip("trl")
    write_data_set(tmp_path / "d", toy_pairs(48), shards=2)
    size = {"model": TINY, "words": 400, "pairs": 4, "at_once": 2, "max_tokens": 100}
    monkeypatch.setattr(train, "setting", lambda case, given: size)
    (tmp_path / "work").mkdir()
    given = Namespace(
        hh=tmp_path / "d", work=tmp_path / "work", device="cpu", reference="live", steps=10, learning_rate=1e-3,
        set=["max_length=64"],
    )  # fmt: skip
    train.prepare("hh", given, given.work)
    ours = train.on_prefkit("hh", given)["losses"]
    theirs = train.on_trl("hh", given)["losses"]
    assert len(ours) == len(theirs) == 10
    assert abs(ours[-1] - ours[0]) > 0.1  # the weights moved
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
