"""The loss curve of TRL's own trainer on the same batches: nothing between raw text and updated weights differs."""

from argparse import Namespace

import numpy as np
import pytest

from tests.benchmarks import train_vs_trl
from tests.train.datasets_for_tests import toy_pairs, write_data_set


@pytest.mark.slow
def test_loss_curve_is_that_of_trl(tmp_path):
    pytest.importorskip("trl")
    write_data_set(tmp_path / "d", toy_pairs(48), shards=2)
    given = Namespace(
        data=tmp_path / "d", work=tmp_path, steps=10, batch=4, reference="live", dtype="float32", max_length=64,
        max_tokens=100, learning_rate=1e-3, vocab=400, hidden=32, layers=2,
    )  # fmt: skip
    train_vs_trl.write_model(given)
    ours = train_vs_trl.on_prefkit(given)["losses"]
    theirs = train_vs_trl.on_trl(given)["losses"]
    assert len(ours) == len(theirs) == 10
    assert abs(ours[-1] - ours[0]) > 0.1  # the weights moved
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
