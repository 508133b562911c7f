"""The reference cache: computed once for the same weights and tokens, never used for others, checked before use."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from prefkit.errors import TrainError
from prefkit.train import chat, policy, reference, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.metrics import Silent
from tests.train.datasets_for_tests import TINY, toy_pairs, write_data_set

QUIET = {"progress": Silent()}


@pytest.fixture
def parts(tmp_path):
    """A policy, and a token store of three shards."""
    folder = tmp_path / "d"
    manifest = write_data_set(folder, toy_pairs(12, answers=3), shards=3)
    words = tokenizer.train_bpe(folder, manifest, vocab_size=400)
    how = Tokenising(None, "truncate_completion", None)
    store = chat.tokenise(folder, manifest, "train", words, how, cache=tmp_path / "cache", **QUIET)
    return (
        policy.ready(policy.create(TINY, words, seed=0), dtype="float32"),
        store,
        Examples.of(store),
        tmp_path / "cache",
    )


@pytest.fixture
def calls(monkeypatch):
    """How many shards were computed."""
    seen = []
    whole = reference.compute

    def counted(*arguments, **options):
        seen.append(options["stage"])
        return whole(*arguments, **options)

    monkeypatch.setattr(reference, "compute", counted)
    return seen


def test_values_do_not_depend_on_bins_or_shards(parts):
    model, _, examples, _ = parts
    small = reference.compute(model, examples, 90, stage="", **QUIET)
    large = reference.compute(model, examples, 10_000, stage="", **QUIET)
    assert np.isfinite(small).all()
    np.testing.assert_allclose(small, large, rtol=1e-5)
    by_shard = [reference.compute(model, examples.shard(n), 10_000, stage="", **QUIET) for n in range(3)]
    np.testing.assert_allclose(np.concatenate(by_shard), large, rtol=1e-5)


def test_second_run_reads_the_cache(parts, calls):
    model, store, examples, cache = parts
    first = reference.cached(model, store, examples, 500, cache=cache, **QUIET)
    again = reference.cached(model, store, examples, 500, cache=cache, **QUIET)
    assert len(calls) == 3
    np.testing.assert_array_equal(first, again)


def test_other_weights_or_precision_are_computed_anew(parts, calls):
    model, store, examples, cache = parts
    first = reference.cached(model, store, examples, 500, cache=cache, **QUIET)
    half = policy.Policy(model.model, model.device, "bfloat16", None)
    assert not np.array_equal(first, reference.cached(half, store, examples, 500, cache=cache, **QUIET))
    with torch.no_grad():
        next(iter(model.trained().values()))[0] += 0.1
    reference.cached(model, store, examples, 500, cache=cache, **QUIET)
    assert len(calls) == 9


def test_interrupted_pass_goes_on(parts, calls, monkeypatch):
    model, store, examples, cache = parts
    counted = reference.compute

    def dies(*arguments, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return counted(*arguments, **options)

    monkeypatch.setattr(reference, "compute", dies)
    with pytest.raises(KeyboardInterrupt):
        reference.cached(model, store, examples, 500, cache=cache, **QUIET)
    monkeypatch.setattr(reference, "compute", counted)
    found = reference.cached(model, store, examples, 500, cache=cache, **QUIET)
    assert len(calls) == 3
    np.testing.assert_allclose(found, counted(model, examples, 500, stage="", **QUIET), rtol=1e-5)


def test_some_prompts_alone(parts, calls):
    """Those of a run that max_steps ends early; the same again from the cache, the whole under another key."""
    model, store, examples, cache = parts
    some = np.array([7, 0, 7, 10])
    for _ in range(2):
        found = reference.cached(model, store, examples, 500, prompts=some, cache=cache, **QUIET)
        assert len(calls) == 3
    known = examples.sequences_of(np.unique(some))
    assert len(known) == 9
    whole = reference.cached(model, store, examples, 500, cache=cache, **QUIET)
    assert len(calls) == 6
    np.testing.assert_allclose(found[known], whole[known], rtol=1e-5)
    assert np.isnan(np.delete(found, known)).all()
    all_prompts = np.arange(examples.prompts)[::-1]
    np.testing.assert_array_equal(
        whole, reference.cached(model, store, examples, 500, prompts=all_prompts, cache=cache, **QUIET)
    )
    assert len(calls) == 6


@pytest.mark.parametrize("damage", ["cut", "flip", "short", "nan"])
def test_damaged_cache_is_found_before_training(parts, damage):
    model, store, examples, cache = parts
    reference.cached(model, store, examples, 500, cache=cache, **QUIET)
    path = next(iter(cache.glob("reference-*/00001.safetensors")))
    array = load_file(path)["logps"]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "flip":
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    elif damage == "short":
        reference._write(path, array[:-1])
    else:
        reference._write(path, np.where(np.arange(len(array)) == 2, np.float32(np.nan), array))
    said = {"cut": "damaged", "flip": "damaged", "short": r"numbers for \d+ sequences", "nan": "not finite"}[damage]
    with pytest.raises(TrainError, match=rf"00001\.safetensors: .*{said}"):
        reference.cached(model, store, examples, 500, cache=cache, **QUIET)
