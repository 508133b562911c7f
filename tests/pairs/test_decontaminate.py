"""Overlaps against brute force over sets of word n-grams, and against the leaks planted in the demo's data."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.errors import DataError, UsageError
from prefkit.pairs.decontaminate import Index, Match, decontaminate, files, identity, write_index
from prefkit.pairs.text import canonical
from prefkit.resolve import check

DATA = Path(__file__).parents[2] / "data"
VOCABULARY = [word for word in (DATA / "make_demo.py").read_text().split() if any(map(str.isalnum, word))]
QUESTION = "which planet of the solar system has the most moons that we know of today, and why is that so"


def build(folder: Path, prompts: Sequence[Any], **options: Any) -> Index:
    """An index of evaluation prompts, by way of a file."""
    (folder / "index").mkdir(parents=True)
    (folder / "evaluation.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    chosen = decontaminate(paths=files(["evaluation.jsonl"], folder), **options)
    write_index(folder / "index", chosen)
    return Index(folder / "index", chosen)


def match(index: Index, *turns: str) -> Match | None:
    return index.matches([[canonical(turn) for turn in turns]])[0]


# ---- brute force -----------------------------------------------------------------------------------------------------


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def coverage(item: list[str], prompt: list[str], ngram: int) -> float:
    """The share of the item's words that lie in n-grams of the prompt."""
    n = min(ngram, len(item))
    shared = set(grams(prompt, n))
    covered = {i + k for i, gram in enumerate(grams(item, n)) if gram in shared for k in range(n)}
    return len(covered) / len(item)


def containment(item: list[str], prompt: list[str]) -> float:
    """The share of the item's 5-grams that the prompt holds."""
    held = set(grams(prompt, 5))
    return sum(gram in held for gram in grams(item, 5)) / len(grams(item, 5))


def brute_force(items: list[list[str]], prompt: list[str], options: dict[str, Any]) -> tuple[str, int, float] | None:
    if prompt in items:
        return "exact_overlap", items.index(prompt), 1.0
    long = [(number, item) for number, item in enumerate(items) if len(item) >= options["min_words"]]
    shares = [(coverage(item, prompt, options["ngram"]), -number) for number, item in long]
    share, number = max(shares, default=(0.0, 0))
    if 0 < share >= options["coverage"]:
        return "ngram_overlap", -number, share
    share, number = max([(containment(item, prompt), -number) for number, item in long], default=(0.0, 0))
    return ("containment", -number, share) if share >= options["containment"] else None


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=24)
ITEMS = st.lists(WORDS, min_size=1, max_size=4, unique_by=tuple)
OPTIONS = st.fixed_dictionaries(
    {
        "ngram": st.integers(5, 13),
        "coverage": st.sampled_from([0.0, 0.5, 0.75, 1.0]),
        "containment": st.sampled_from([0.3, 0.8, 1.0]),
        "min_words": st.integers(5, 9),
    }
)


@given(ITEMS, st.lists(WORDS, min_size=1, max_size=12), OPTIONS, st.data())
@settings(max_examples=200, deadline=None)
def test_every_match_is_that_of_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[list[str]],
    prompts: list[list[str]],
    options: dict[str, Any],
    data: st.DataObject,
) -> None:
    planted = data.draw(st.lists(st.tuples(WORDS, st.sampled_from(items), WORDS), max_size=4))
    prompts = prompts + [[*before, *item, *after] for before, item, after in planted]
    index = build(tmp_path_factory.mktemp("index"), [" ".join(item) for item in items], **options)
    found = index.matches([[" ".join(prompt)] for prompt in prompts])
    for prompt, each in zip(prompts, found, strict=True):
        assert (each and each[:3]) == brute_force(items, prompt, options)


@given(st.integers(0, 10_000), st.integers(8, 60))
@settings(max_examples=60, deadline=None)
def test_a_planted_item_is_always_found_and_named(
    tmp_path_factory: pytest.TempPathFactory, seed: int, length: int
) -> None:
    rng = random.Random(seed)
    items = [" ".join(rng.choices(VOCABULARY, k=length)) + f" item {number}" for number in range(5)]
    index = build(tmp_path_factory.mktemp("index"), items)
    around = [" ".join(rng.choices(VOCABULARY, k=rng.randrange(40))) for _ in range(10)]
    prompts = [f"{around[2 * i]} ({item.upper()}) {around[2 * i + 1]}" for i, item in enumerate(items)]
    found = index.matches([[canonical(prompt)] for prompt in prompts])
    for number, each in enumerate(found):
        assert each and each.item == number and each.share == 1.0 and each.reason != "containment"
        assert index.describe(each).startswith(f"evaluation.jsonl, row {number + 1}: ")


# ---- what counts -----------------------------------------------------------------------------------------------------


def test_the_three_reasons_and_what_they_say(tmp_path: Path) -> None:
    index = build(tmp_path, ["Name a fruit.", QUESTION])
    exact = match(index, QUESTION.upper() + "\n")
    assert (
        exact and exact.reason == "exact_overlap" and index.describe(exact) == "evaluation.jsonl, row 2: the same text"
    )
    quoted = match(index, "Tell me which planet of the solar system has the most MOONS — that we know of, I mean.")
    assert quoted and quoted.reason == "ngram_overlap"
    assert index.describe(quoted) == (
        "evaluation.jsonl, row 2: 70% of its words in 13-grams, "
        'first "which planet of the solar system has the most moons — that we know"'
    )
    changed = match(index, QUESTION.replace("has", "had") + " since long ago?")
    assert changed == Match("ngram_overlap", 1, 13 / 20, "the most moons that we know of today, and why is that so")
    changed = match(build(tmp_path / "two", [QUESTION], coverage=0.8, containment=0.6), QUESTION.replace("has", "had"))
    assert changed == Match("containment", 0, 11 / 16)
    assert match(index, "Which planet has the most moons?") is None


@pytest.mark.parametrize(
    ("asked", "quoted"),
    [
        ("write to jane.doe@mail.org about it", "write to [EMAIL] about it"),
        ("write to \uff4aane\uff20mail.org about it", "write to [EMAIL] about it"),  # an address once it is canonical
        ("call me at +49 30 901820 today", "call me at [PHONE] today"),
        ("ping 8.8.4.4 for me now, please", "ping [IP] for me now, please"),
    ],
)
def test_what_is_quoted_holds_no_personal_data(tmp_path: Path, asked: str, quoted: str) -> None:
    index = build(tmp_path, [f"{asked} and say that you like the planet with the moons"], containment=False)
    found = match(index, f"Hello there! {asked} and say that you like the planet with the rings")
    assert found is not None and found.reason == "ngram_overlap"
    assert f'in 13-grams, first "{quoted} and say' in index.describe(found)


def test_personal_data_that_goes_on_beyond_the_n_gram_is_not_quoted_in_part(tmp_path: Path) -> None:
    item = "30 901820 is the number of the planet with the most moons that we know of today"
    index = build(tmp_path, [item], containment=False)
    found = match(index, f"+49 {item} and why is that so")
    assert found is not None and found.reason == "ngram_overlap"
    assert index.describe(found) == "evaluation.jsonl, row 1: 100% of its words in 13-grams"


def test_methods_can_be_switched_off(tmp_path: Path) -> None:
    prompt = QUESTION.replace("has", "had") + " since long ago?"
    by = {ngram: build(tmp_path / str(ngram), [QUESTION], ngram=ngram, containment=0.6) for ngram in (False, 13)}
    assert match(by[False], prompt) == Match("containment", 0, 11 / 16)
    assert match(by[False], QUESTION) == match(by[13], QUESTION) == Match("exact_overlap", 0, 1.0)
    neither = build(tmp_path / "neither", [QUESTION], ngram=False, containment=False)
    assert match(neither, prompt) is None and match(neither, QUESTION)


def test_a_short_item_matches_only_as_the_whole_prompt(tmp_path: Path) -> None:
    index = build(
        tmp_path, ["Write a poem.", "write a short poem about the autumn", "Write a short poem about a late autumn."]
    )
    assert match(index, " write A poem. ") == Match("exact_overlap", 0, 1.0)
    assert match(index, "Write a poem. It shall be long, and about the rain.") is None
    assert match(index, "Please write a short poem about the autumn in Rome, with many rhymes.") is None
    held = match(index, "Please write a short poem about a late autumn in Rome, with many rhymes.")
    assert held == Match("ngram_overlap", 2, 1.0, "write a short poem about a late autumn")


def test_words_are_characters_where_no_spaces_are(tmp_path: Path) -> None:
    index = build(tmp_path, ["请用三句话解释为什么天空在白天是蓝色的。", "ประเทศไทยมีกี่จังหวัดและภาคใดมีมากที่สุด"])
    han, thai = (
        match(index, f"{text} 谢谢")
        for text in ("请用三句话解释为什么天空在白天是蓝色的？", "ประเทศไทยมีกี่จังหวัดและภาคใดมีมาก")
    )
    assert han and (han.item, han.share) == (0, 1.0)
    assert thai and thai.item == 1 and 0.7 < thai.share < 1


def test_turns_count_for_themselves_from_min_words_on(tmp_path: Path) -> None:
    index = build(tmp_path, [QUESTION, ["Tell me of the largest river that flows through Asia.", "Go on."], "Go on."])
    assert match(index, "Hello!", QUESTION, "Thanks!") == Match("exact_overlap", 0, 1.0)
    assert match(index, "Tell me of the largest river that flows through Asia.", "Stop.") == Match(
        "exact_overlap", 3, 1.0
    )
    both = match(index, "Tell me of the largest river that flows through Asia.", "Go on.")
    assert both == Match("exact_overlap", 1, 1.0)
    assert match(index, "Go on.") == Match("exact_overlap", 2, 1.0)
    assert match(index, "Who was Homer?", "Go on.") is None
    assert [index.items.rows[item].tolist() for item in range(4)] == [[0, 1], [0, 2], [0, 3], [0, 2]]


def test_no_prompts_and_prompts_without_user_turns(tmp_path: Path) -> None:
    index = build(tmp_path, [QUESTION])
    assert index.matches([]) == []
    assert index.matches([[], [""], ["?"]]) == [None, None, None]


def test_batches_do_not_matter(tmp_path: Path) -> None:
    rng = random.Random(0)
    prompts = [" ".join(rng.choices("abcdef", k=rng.randrange(40))) for _ in range(400)]
    index = build(tmp_path, prompts[::7], ngram=6, coverage=0.3)
    one_by_one = [index.matches([[prompt]])[0] for prompt in prompts]
    assert index.matches([[prompt] for prompt in prompts]) == one_by_one
    assert len({each and each.reason for each in one_by_one}) >= 3


def test_worker_processes_share_the_index(tmp_path: Path) -> None:
    index = build(tmp_path, [QUESTION])
    again = Index(tmp_path / "index", index.options)
    for mine, theirs in zip(index.items, again.items, strict=True):
        assert isinstance(mine.base, np.memmap) and not mine.flags.writeable
        assert (mine == theirs).all()


# ---- the demo's leaks ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_prompts() -> dict[int, str]:
    """The instruction of each line of the demo's raw data that has one."""
    prompts = {}
    for number, line in enumerate(gzip.decompress((DATA / "demo.jsonl.gz").read_bytes()).split(b"\n"), 1):
        try:
            instruction = json.loads(line)["instruction"]
        except (ValueError, TypeError, KeyError):
            continue
        if isinstance(instruction, str):
            prompts[number] = instruction
    return prompts


@pytest.mark.parametrize("options", [{"coverage": 0.8}, {"ngram": False}], ids=["ngram", "containment"])
def test_exactly_the_leaks_of_the_demo_are_found(
    tmp_path: Path, demo_prompts: dict[int, str], options: dict[str, Any]
) -> None:
    chosen = decontaminate(paths=files(["demo.benchmark.jsonl"], DATA), **options)
    write_index(tmp_path, chosen)
    index = Index(tmp_path, chosen)
    found = dict(zip(demo_prompts, index.matches([[canonical(text)] for text in demo_prompts.values()]), strict=True))
    overlaps = {number: each for number, each in found.items() if each}
    assert sorted(overlaps) == sorted(json.loads((DATA / "demo.truth.json").read_text())["planted"]["leaked"])
    benchmark = (DATA / "demo.benchmark.jsonl").read_text().splitlines()
    for number, each in overlaps.items():
        _, row = index.items.rows[each.item].tolist()
        assert json.loads(benchmark[row - 1])["prompt"] in demo_prompts[number]
        assert f"demo.benchmark.jsonl, row {row}: 100% of its " in index.describe(each)


def test_by_default_games_that_share_most_of_their_wording_go_too(tmp_path: Path, demo_prompts: dict[int, str]) -> None:
    chosen = decontaminate(paths=files(["demo.benchmark.jsonl"], DATA))
    write_index(tmp_path, chosen)
    found = Index(tmp_path, chosen).matches([[canonical(text)] for text in demo_prompts.values()])
    shares = sorted(each.share for each in found if each)
    assert shares[-16:] == [1.0] * 16 and shares[0] >= 0.5 and shares[-17] < 0.75
    assert len(shares) < 0.01 * len(demo_prompts)


# ---- reading ---------------------------------------------------------------------------------------------------------

ROWS = [
    "Was sagt der Hahn am Morgen, und was sagt die Henne dazu?",
    'Name "three" colours,\nplease, and say why you chose them.',
]


def write_jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps({"id": 1, "data": {"question": row}}) for row in ROWS) + "\n\n")


def write_gzip(path: Path) -> None:
    write_jsonl(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def write_array(path: Path) -> None:
    path.write_text(json.dumps([{"data.question": row} for row in ROWS]))


def write_parquet(path: Path) -> None:
    system = {"role": "system", "content": "Be brief, be kind, be right, and never say that you are a model."}
    pl.DataFrame({"data": [{"question": [system, {"role": "user", "content": row}]} for row in ROWS]}).write_parquet(
        path
    )


def write_csv(path: Path) -> None:
    pl.DataFrame({"id": [1, 2], "data.question": ROWS}).write_csv(path)


def write_text(path: Path) -> None:
    path.write_bytes(zstandard.compress(f"\ufeff{ROWS[0]}\r\n{canonical(ROWS[1])}".encode()))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_jsonl),
        ("a.jsonl.gz", write_gzip),
        ("a.json", write_array),
        ("a.parquet", write_parquet),
        ("a.csv", write_csv),
        ("a.txt.zst", write_text),
    ],
)
def test_all_formats_give_the_same_items(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name)
    (tmp_path / "index").mkdir()
    options = decontaminate(paths=files([name], tmp_path), column="data.question")
    write_index(tmp_path / "index", options)
    index = Index(tmp_path / "index", options)
    assert index.items.rows.tolist() == [[0, 1], [0, 2]]
    found = index.matches(
        [[canonical(row)] for row in ROWS] + [["be brief, be kind, be right, and never say that you are a model."]]
    )
    assert found == [Match("exact_overlap", 0, 1.0), Match("exact_overlap", 1, 1.0), None]


@pytest.mark.parametrize("first", ['[{"a": 1}] is what kind of a list, and why?', "{"])
def test_a_prompt_a_line_may_look_like_json(tmp_path: Path, first: str) -> None:
    (tmp_path / "a.txt").write_text(f'{first}\n"quoted", he said, and who was it that did?\n')
    write_index(tmp_path, decontaminate(paths=files(["a.txt"], tmp_path)))
    found = match(
        Index(tmp_path, decontaminate(paths=files(["a.txt"], tmp_path))), '"quoted", he said, and who was it that did?'
    )
    assert found is not None and found.reason == "exact_overlap"


def test_of_several_files_the_first_that_has_an_item_is_named(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "b.txt").write_text(f"Is this a question?\n\n{QUESTION}\n")
    (tmp_path / "sets" / "a.txt").write_text("What is not a question, if I may ask you so early?\n")
    (tmp_path / "c.jsonl").write_text(json.dumps({"prompt": QUESTION}) + "\n" + json.dumps({"prompt": None}) + "\n")
    (tmp_path / "index").mkdir()
    options = decontaminate(paths=files(["sets/*.txt", "c.jsonl"], tmp_path))
    write_index(tmp_path / "index", options)
    index = Index(tmp_path / "index", options)
    assert len(index.items.rows) == 3
    found = match(index, QUESTION)
    assert found and index.describe(found) == "b.txt, row 3: the same text"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"promt": "x"}', 'a.jsonl, row 1: .*there is no "prompt" among promt. Mend'),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": 5}', 'a.jsonl, row 2: .*"prompt" is a number, not text'),
        ("a.jsonl", b'{"prompt": "x"}\n\n{"prompt', "a.jsonl, row 3: .*Unterminated string"),
        ("a.jsonl", b'{"prompt": "\\ud800"}', "a.jsonl, row 1: .*surrogates not allowed"),
        ("a.jsonl", b'{"prompt": [{"role": "boss", "content": "x"}]}', "a.jsonl, row 1: .*role 'boss'"),
        ("a.jsonl", b"[5]", 'a.jsonl, row 1: there is no "prompt". Mend'),
        ("a.jsonl", b'{"prompt": null}', "a.jsonl: there is no evaluation prompt in it"),
        ("a.txt", b"", "a.txt: there is no evaluation prompt in it"),
        ("a.txt", b"fine\n\xff\n", "a.txt, row 2: .*can't decode byte"),
        ("a.csv", b"question\nWho?\n", 'a.csv, row 1: .*there is no "prompt"'),
        ("a.csv", b"prompt,x\nWho?,1,2,3\n", "a.csv, row 1: 4 fields"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        write_index(tmp_path, decontaminate(paths=files([name], tmp_path)))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text("MIT")
    for missing in ("*.csv", "a.txt", "a.jsonl", "."):
        with pytest.raises(UsageError, match=r"no such file|a folder without raw files"):
            files([missing], tmp_path)


def test_the_identity_of_evaluation_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Who?\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "Who?"}\n')
    given = files(["a.txt", "b.jsonl"], tmp_path)
    expected = {Path(path).name: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in given}
    assert identity(given) == expected and list(expected) == ["a.txt", "b.jsonl"]


def test_coverage_without_ngrams_is_refused() -> None:
    given = {"paths": ["a.txt"], "ngram": False, "coverage": 0.8}
    with pytest.raises(UsageError, match=r"coverage: has no effect with ngram = false"):
        check("prefkit.pairs.decontaminate:decontaminate", given, "here").call()


@pytest.mark.parametrize(
    "wrong", [{"ngram": 4}, {"ngram": True}, {"containment": True}, {"coverage": 2}, {"paths": "a"}, {"paths": []}]
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        check("prefkit.pairs.decontaminate:decontaminate", {"paths": ["a.txt"]} | wrong, "here")
