"""The packing collator: the same log-probabilities as padded sequences, whatever rows stand together."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import prefkit
from prefkit import manifest
from prefkit.errors import TrainError, UsageError
from prefkit.train import attention
from prefkit.train.logps import padded_token_logps, pair_logps, sequence_sums, token_logps
from prefkit.train.tokenizer import train_bpe
from tests.train.conftest import make_model
from tests.train.datasets_for_tests import pair, toy_pairs, write_data_set


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collator") / "d"
    write_data_set(folder, toy_pairs(24, answers=3))
    return train_bpe(folder, manifest.read(folder), vocab_size=400)


def by_hand(model, words, rows):
    """Chosen and rejected log-probabilities by transformers' own forward, one sequence at a time."""
    found = []
    for row in rows:
        prompt = words.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        for side in (row["chosen"], row["rejected"]):
            ids = torch.tensor([words.apply_chat_template(row["prompt"] + side, return_dict=False)])
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            found.append(logps[len(prompt) - 1 :].sum().item())
    return np.array(found).reshape(-1, 2)


@pytest.mark.parametrize("max_tokens", [150, 100_000])
def test_log_probabilities_are_those_of_single_sequences(words, max_tokens):
    model = make_model("Llama", vocab_size=len(words))
    rows = toy_pairs(8, answers=3)
    order = np.random.default_rng(0).permutation(len(rows))
    rows = [rows[i] for i in order]  # pairs of one prompt stand anywhere in the batch
    with torch.no_grad():
        expected = by_hand(model, words, rows)
    attention.enable(model)
    batch = prefkit.PackingCollator(words, max_tokens=max_tokens, max_length=0)(rows)
    assert batch["pairs"] == len(rows)
    assert batch["counts"] == {}
    assert (len(batch["bins"]) > 1) == (max_tokens == 150)
    seen = []
    for bin in batch["bins"]:
        assert bin.input_ids_1T.shape[1] <= max_tokens
        for logps in (token_logps, padded_token_logps):
            sides = pair_logps(sequence_sums(logps(model, bin), bin), bin)
            found = torch.stack([sides.chosen_P, sides.rejected_P], 1).detach().numpy()
            np.testing.assert_allclose(found, expected[bin.pair_rows_P.numpy()], rtol=1e-4)
        seen += bin.pair_rows_P.tolist()
    assert sorted(seen) == list(range(len(rows)))
    shared = sum(bin.input_ids_1T.shape[1] for bin in batch["bins"])
    assert shared < 0.6 * sum(int((bin.sequence_end_Q[bin.pairs_P2] + 1).sum()) for bin in batch["bins"])


def test_it_goes_through_a_data_loader_with_workers(words):
    rows = toy_pairs(8)
    collator = prefkit.PackingCollator(words, max_tokens=200)
    loader = DataLoader(rows, batch_size=4, collate_fn=collator, num_workers=1)
    there = [[bin.input_ids_1T.tolist() for bin in batch["bins"]] for batch in loader]
    here = [[bin.input_ids_1T.tolist() for bin in collator(rows[at : at + 4])["bins"]] for at in (0, 4)]
    assert there == here
    assert pickle.loads(pickle.dumps(collator))(rows)["pairs"] == 8


def test_answers_of_a_batch_have_numbers_of_their_own(words):
    rows = [pair("a?", "x", "y"), pair("b?", "x", "y"), pair("a?", "x", "z")]
    (bin,) = prefkit.PackingCollator(words)(rows)["bins"]
    assert sorted(bin.sequence_rows_Q.tolist()) == [0, 1, 2, 3, 4]


def test_what_cannot_be_used_is_counted_or_refused(words):
    rows = [*toy_pairs(2), pair("long " * 300, "yes", "no")]
    batch = prefkit.PackingCollator(words, max_length=100)(rows)
    assert (batch["pairs"], batch["counts"]) == (2, {"prompt_too_long": 1})
    with pytest.raises(TrainError, match=r"none of the 1 rows .*prompt_too_long"):
        prefkit.PackingCollator(words, max_length=100)(rows[2:])
    with pytest.raises(TrainError, match=r"row 2: .* more than max_length = 100"):
        prefkit.PackingCollator(words, max_length=100, max_length_policy="error")(rows)
    with pytest.raises(TrainError, match="more than max_tokens = 100"):
        prefkit.PackingCollator(words, max_tokens=100, max_length=0)(rows)
    with pytest.raises(TrainError, match='row 1 of a batch: "chosen" must be a list of messages'):
        prefkit.PackingCollator(words)([toy_pairs(1)[0], {"prompt": rows[0]["prompt"], "chosen": "text"}])
    with pytest.raises(TrainError, match="remove_unused_columns=False"):
        prefkit.PackingCollator(words)([{}])
    with pytest.raises(UsageError, match="max_tokens"):
        prefkit.PackingCollator(words, max_tokens=0)
    with pytest.raises(UsageError, match="max_length_policy"):
        prefkit.PackingCollator(words, max_length_policy="cut")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "a?"}]},
        {"role": "user", "content": 3},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]},
    ],
)
def test_messages_that_are_more_than_text_are_refused(words, message):
    row = pair("a?", "x", "y")
    for rows in ([{**row, "prompt": [message]}], [{**row, "chosen": [message]}]):
        with pytest.raises(TrainError, match=r"row 0 of a batch: .* of texts"):
            prefkit.PackingCollator(words)(rows)


def test_an_empty_batch_is_refused(words):
    with pytest.raises(TrainError, match="none of the 0 rows"):
        prefkit.PackingCollator(words)([])
