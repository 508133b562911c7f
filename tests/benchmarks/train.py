"""Training measured, alone and against TRL's DPOTrainer: one table, on a CPU or a GPU.

    taskset -c 1 python tests/benchmarks/train.py --hh DIR                     # one core, float32
    python tests/benchmarks/train.py --device cuda                             # bfloat16, 1B and 8B classes
    python tests/benchmarks/train.py --device cuda --no-trl                    # where TRL is not installed

Cases (`--case`, all that the device can by default):

    hh          the pairs of a data set that `prefkit build-pairs hh-rlhf` made, one a prompt
    all_pairs   four answers a prompt, all six pairs; words drawn like UltraFeedback's in number
    best        the same prompts, one pair each
    lora        best, a LoRA adapter on an 8B-class model; CUDA only
    packing     how full bins are, how fast trees are built; no model
    head        what the output head adds to memory: 128k words, 16k tokens of width 2048

Both sides train the same random Llama on the same pairs in the same order with the same options, each in a process of
its own, in turn, `--repeats` times; with the reference model live in memory, or its log-probabilities computed before
(`--reference cached`). Pairs per second count from the end of the first step to that of the last; medians are quoted.
`data` is the share of that time that reading rows and building trees took. MFU counts the operations that the step
needs as it is computed: 6 a weight of the layers and token of a bin (2 in the reference's pass), the visible pairs of
attention, the head at completion tokens; recomputation counts for nothing. The peak is the card's, or on a CPU what a
large matrix product reaches.

Needs, for prefkit's side, no more than training does: torch, transformers, pyarrow, numpy and pydantic.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
CASES = ("hh", "all_pairs", "best", "lora", "packing", "head")
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 operations a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--hh", type=Path, help="a data set with one pair a prompt")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--reference", choices=("live", "cached"), default="live")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-7)
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=JSON", help="of prefkit's phase")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if given.side:
        measured = {"prefkit": on_prefkit, "trl": on_trl}[given.side]
        print(json.dumps(measured(given.case[-1], given)))  # the last one: `compare` puts it behind the user's
        return
    for case in given.case or CASES:
        if (case == "lora" and given.device == "cpu") or (case == "hh" and given.hh is None):
            print(f"{case:10} left out: needs {'a GPU' if case == 'lora' else '--hh DIR'}")
        elif case == "packing":
            packing()
        elif case == "head":
            head(given)
        else:
            compare(case, given)


def setting(case: str, given: argparse.Namespace) -> dict:
    """The size of the model, the pairs of a step, and how many of them TRL takes at a time."""
    if given.device == "cpu":
        model, words, pairs = SMALL, 8192, 6 if case == "all_pairs" else 4
        return {"model": model, "words": words, "pairs": pairs, "at_once": pairs, "max_tokens": 8192}
    model = LLAMA_8B if case == "lora" else LLAMA_1B
    return {"model": model, "words": 128256, "pairs": 96, "at_once": 4, "max_tokens": 16384}


def compare(case: str, given: argparse.Namespace) -> None:
    """Measure both sides in turn, each in a process of its own, and print a line of the table."""
    sides = ["prefkit"] if given.no_trl else ["prefkit", "trl"]
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as work:
        prepare(case, given, Path(work))
        for _, side in itertools.product(range(given.repeats), sides):
            command = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--side", side, "--work", work]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            runs[side].append(json.loads(done.stdout.splitlines()[-1]))
    speed = {side: statistics.median(run["pairs_per_second"] for run in found) for side, found in runs.items()}
    own = runs["prefkit"][0]
    line = f"{case:10} prefkit {speed['prefkit']:.2f} pairs/s, MFU {own['mfu']:.0%}, data {own['data_share']:.2%}, "
    line += f"sharing {own['sharing']:.2f}, memory {own['memory_gib']:.2f} GiB"
    if not given.no_trl:
        trl = runs["trl"][0]
        apart = np.abs(np.array(own["losses"]) - np.array(trl["losses"])).max()
        line += f"; TRL {speed['trl']:.2f} pairs/s, memory {trl['memory_gib']:.2f} GiB; "
        line += (
            f"{speed['prefkit'] / speed['trl']:.1f} times as fast, losses within {apart:.1e} over {given.steps} steps"
        )
    print(line, flush=True)


def prepare(case: str, given: argparse.Namespace, work: Path) -> None:
    """A random Llama with its tokenizer in WORK/model, and the data set in WORK/data."""
    from prefkit import manifest
    from prefkit.train import policy, tokenizer
    from tests.train.datasets_for_tests import write_data_set

    how = setting(case, given)
    if case == "hh":
        made = manifest.read(given.hh)
        words = tokenizer.train_bpe(given.hh, made, vocab_size=how["words"], rows=5000)
        train_split_alone(given.hh, work / "data")
    else:
        words = word_tokenizer(how["words"])
        prompts = given.steps * how["pairs"] // (6 if case == "all_pairs" else 1)
        write_data_set(work / "data", ultrafeedback_like(prompts, how["words"], all_pairs=case == "all_pairs"))
    config = {"model_type": "llama", "max_position_embeddings": 4096, "num_key_value_heads": 2, **how["model"]}
    if given.device == "cuda":
        config["num_key_value_heads"] = 8
    policy.quiet_transformers()
    policy.create(config, words, seed=0).save_pretrained(work / "model")
    words.save_pretrained(work / "model")


def train_split_alone(data: Path, target: Path) -> None:
    """The data set without its test split: TRL's side evaluates nothing either."""
    import dataclasses

    from prefkit import manifest

    made = manifest.read(data)
    target.mkdir()
    (target / "data").symlink_to(data.resolve() / "data")
    made = dataclasses.replace(made, shards=made.of_split("train"))
    (target / "manifest.json").write_text(manifest.dump(made))


def word_tokenizer(size: int) -> object:
    """One token a word, so that lengths are what they are meant to be."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from prefkit.train.tokenizer import SPECIAL_TEMPLATE, SPECIAL_TOKENS

    vocabulary = {word: i for i, word in enumerate([*SPECIAL_TOKENS, *(f"w{n}" for n in range(size - 5))])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|pad|>", eos_token="<|end|>")
    words.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[2:]})
    words.chat_template = SPECIAL_TEMPLATE
    return words


def lengths(prompts: int, rng: np.random.Generator) -> list[tuple[int, list[int]]]:
    """Tokens of prompts and their four answers, log-normal as UltraFeedback's."""
    return [
        (min(int(rng.lognormal(4.8, 0.9)) + 8, 512), [min(int(rng.lognormal(5.4, 0.7)) + 4, 510) for _ in range(4)])
        for _ in range(prompts)
    ]


def ultrafeedback_like(prompts: int, size: int, *, all_pairs: bool) -> list[dict]:
    """Pairs of random words: all six of each prompt's four answers, or the first against the last."""
    from tests.train.datasets_for_tests import pair

    rng = np.random.default_rng(0)

    def text(words: int) -> str:
        return " ".join(f"w{n}" for n in rng.integers(0, size - 5, words))

    rows = []
    for number, (of_prompt, of_answers) in enumerate(lengths(prompts, rng)):
        prompt, answers = text(of_prompt), [text(n) for n in of_answers]
        for better, worse in itertools.combinations(range(4), 2) if all_pairs else [(0, 3)]:
            name = {"prompt_id": f"{number}", "pair_id": f"{number} {better} {worse}"}
            rows.append(pair(prompt, answers[better], answers[worse], **name))
    return rows


def phase_table(case: str, given: argparse.Namespace) -> dict:
    """The phase as a pipeline file would have it: TRL's defaults, a constant learning rate."""
    how = setting(case, given)
    return {
        "name": "dpo",
        "objective": "sigmoid",
        "pairs_per_step": how["pairs"],
        "max_tokens": how["max_tokens"],
        "learning_rate": given.learning_rate,
        "schedule": "constant",
        "warmup": 0,
        "max_steps": given.steps,
        "reference": given.reference,
        "dtype": "float32" if given.device == "cpu" else "bfloat16",
        "checkpoint_every": 10**6,
        **({"lora": {}} if case == "lora" else {}),
        **{option.partition("=")[0]: json.loads(option.partition("=")[2]) for option in given.set},
    }


def on_prefkit(case: str, given: argparse.Namespace) -> dict:
    """Train with prefkit; the clock reads at the end of each step."""
    from prefkit.config import Pipeline
    from prefkit.train import loop, metrics, run

    ends: list[float] = []
    waits: list[float] = []
    operations: list[float] = []
    real = loop.make_step

    def timed_step(*args: object, **kwargs: object) -> object:
        started = time.perf_counter()
        step = real(*args, **kwargs)
        waits.append(time.perf_counter() - started)
        operations.append(sum(operations_of(bin, setting(case, given), given) for bin in step.bins))
        return step

    class Clock(metrics.Silent):
        def update(self, stage: str, done: int, total: int, detail: str = "") -> None:
            if stage == "dpo":
                ends.append(time.perf_counter())

    loop.make_step = timed_step
    table = {"model": {"path": str(given.work / "model")}, "train": [phase_table(case, given)]}
    out = Path(tempfile.mkdtemp(dir=given.work))
    pipeline = Pipeline("benchmark", Path("benchmark.toml"), "", [], table)
    run.train(pipeline, data=given.work / "data", out=out / "run", cache=given.work / "cache", progress=Clock())
    lines = [line for line in metrics.read(out / "run") if "loss" in line]
    seconds = ends[-1] - ends[0]
    return {
        "pairs_per_second": sum(line["pairs"] for line in lines[1:]) / seconds,
        "losses": [line["loss"] for line in lines],
        "sharing": statistics.mean(line["sharing_factor"] for line in lines),
        "data_share": sum(waits[1:]) / seconds,
        "mfu": sum(operations[1:]) / seconds / peak(given.device),
        "memory_gib": memory(given.device),
    }


def operations_of(bin: object, how: dict, given: argparse.Namespace) -> float:
    """Floating-point operations of a bin, forward and backward, with the reference's forward pass if it is live."""
    width, layers, heads = (how["model"][f"{k}"] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    shared = 2 if given.device == "cpu" else 8
    weights = layers * (2 * width**2 * (1 + shared / heads) + 3 * width * how["model"]["intermediate_size"])
    visible = sum(n * d + n * (n + 1) / 2 for n, d in zip(bin.segments.lengths, bin.segments.depths, strict=True))
    one_pass = 2 * weights * bin.input_ids_1T.numel() + 4 * width * layers * visible
    one_pass += 2 * len(bin.entry_target_C) * width * how["words"]
    return one_pass * (3 + (given.reference == "live"))


def peak(device: str) -> float:
    """Operations a second that the device could do."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return next((value for key, value in PEAKS.items() if key in name), float("nan"))
    a = torch.randn(1536, 1536)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * 1536**3 / min(times)


def memory(device: str) -> float:
    """GiB at the peak: of the device, or of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def on_trl(case: str, given: argparse.Namespace) -> dict:
    """Train with TRL on the same steps, in the same order."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    how, ends, losses = setting(case, given), [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_arguments: object, **_others: object) -> None:
            ends.append(time.perf_counter())

        def on_log(self, *_arguments: object, logs: dict, **_others: object) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *_arguments: object) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    adapter = {}
    if case == "lora":
        from peft import LoraConfig

        adapter["peft_config"] = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(given.work / "model", dtype=torch.float32),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(dir=given.work), per_device_train_batch_size=how["at_once"],
            gradient_accumulation_steps=how["pairs"] // how["at_once"], max_steps=given.steps,
            logging_steps=1, report_to=[], save_strategy="no", warmup_steps=0,
            max_length=phase_table(case, given).get("max_length", 1024),
            learning_rate=given.learning_rate, lr_scheduler_type="constant", gradient_checkpointing=False,
            bf16=given.device == "cuda", precompute_ref_log_probs=given.reference == "cached",
            use_cpu=given.device == "cpu", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows_in_order(case, given)),
        processing_class=AutoTokenizer.from_pretrained(given.work / "model"),
        callbacks=[Clock()],
        **adapter,
    )  # fmt: skip
    trainer.train()
    return {
        "pairs_per_second": (len(ends) - 1) * how["pairs"] / (ends[-1] - ends[0]),
        "losses": losses,
        "memory_gib": memory(given.device),
    }


def rows_in_order(case: str, given: argparse.Namespace) -> list[dict]:
    """The pairs of prefkit's first steps, one after another."""
    from prefkit import manifest
    from prefkit.train import chat, run, tokenizer
    from prefkit.train.examples import Examples
    from prefkit.train.options import check_phase
    from prefkit.train.stream import Plan

    phase, _ = check_phase(phase_table(case, given), "benchmark")
    words, data = tokenizer.load_tokenizer(given.work / "model"), given.work / "data"
    made = manifest.read(data)
    how = chat.Tokenising(phase.max_length or None, phase.max_length_policy, None)
    where = {"cache": given.work / "cache", "progress": run.Silent()}
    examples = Examples.of(chat.tokenise(data, made, "train", words, how, **where))
    shards = tuple(shard.prompts for shard in examples.shards)
    order = Plan(shards, examples.counts(), phase.pairs_per_step, phase.epochs, phase.seed, phase.shuffle_window)
    base = np.concatenate([[0], np.cumsum(examples.counts())])
    tables = [pq.read_table(data / shard.path) for shard in made.of_split("train")]
    rows = []
    for step in range(given.steps):
        pairs = [pair for prompt in order.prompts(step) for pair in range(base[prompt], base[prompt + 1])]
        if len(pairs) != phase.pairs_per_step:
            sys.exit(f"step {step} has {len(pairs)} pairs: a TRL batch of {phase.pairs_per_step} would be another one")
        for pair in pairs:
            shard, row = examples.origin_of_pair(pair)
            rows += tables[shard].select(["prompt", "chosen", "rejected"]).slice(row, 1).to_pylist()
    return rows


def packing() -> None:
    """How full the bins of a step are, and how fast its trees are built and put into them."""
    from prefkit.train.fill import pack
    from prefkit.train.pack import Sequence, build_tree, collate, tree_size

    rng = np.random.default_rng(0)
    groups = []
    for of_prompt, of_answers in lengths(400, rng):
        prompt = rng.integers(5, 8192, of_prompt)
        tokens = [np.r_[prompt, rng.integers(5, 8192, n)].astype(np.int32) for n in of_answers]
        groups.append([Sequence(row, of_prompt) for row in tokens])
    pairs = list(itertools.combinations(range(4), 2))
    started = time.perf_counter()
    trees = [build_tree(group, pairs, pair_rows=range(6), sequence_rows=range(4)) for group in groups]
    built = time.perf_counter()
    sizes = [tree.size for tree in trees]
    for tree_bins in (pack(sizes, 16384), pack(sizes, 8192)):
        [collate([trees[i] for i in members]) for members in tree_bins]
    done = time.perf_counter()
    tokens = sum(len(sequence.tokens) for group in groups for sequence in group)
    speed = [tokens / (built - started) / 1e6, 2 * sum(sizes) / (done - built) / 1e6]
    print(f"packing    trees {speed[0]:.0f}, bins {speed[1]:.0f} million tokens/s")
    best = [tree_size([group[0], group[-1]]) for group in groups]
    for title, of_trees, pairs_a_tree in (("all pairs", sizes, 6), ("one pair a prompt", best, 1)):
        for size in (8192, 16384):
            for pairs_per_step in (64, 128, None):
                trees_a_step = -(-pairs_per_step // pairs_a_tree) if pairs_per_step else len(of_trees)
                print(f"packing    {title}, bins of {size:,}, {pairs_per_step or 'all'} pairs a step: "
                      f"{how_full(of_trees, size, trees_a_step)}")  # fmt: skip


def how_full(sizes: list[int], max_tokens: int, trees_a_step: int) -> str:
    """The share of the bins' tokens that whole steps of so many trees fill, and what no packing could exceed."""
    from prefkit.train.fill import fewest, pack

    steps = [sizes[at : at + trees_a_step] for at in range(0, len(sizes) - trees_a_step + 1, trees_a_step)]
    tokens = sum(map(sum, steps))
    taken, least = (sum(of(step, max_tokens) for step in steps) for of in (lambda *a: len(pack(*a)), fewest))
    return (
        f"{tokens / taken / max_tokens:.1%} full, at most {tokens / least / max_tokens:.1%} "
        f"({tokens:,} tokens in {taken} bins of {len(steps)} steps)"
    )


def head(given: argparse.Namespace) -> None:
    """Peak memory of the head beyond weight, hidden states and their gradients; on a CPU at a 64th of the width."""
    from prefkit.train.logps import CHUNK_LOGITS, _ChunkedLogps

    width, dtype = (2048, torch.bfloat16) if given.device == "cuda" else (32, torch.float32)
    tokens, words = (16384, 128256) if given.device == "cuda" else (2048, 128256)
    weight = torch.randn(words, width, device=given.device, dtype=dtype, requires_grad=True)
    hidden = torch.randn(tokens, width, device=given.device, dtype=dtype, requires_grad=True)
    targets = torch.randint(words, (tokens,), device=given.device)
    chunk = CHUNK_LOGITS // words
    before = memory(given.device)
    if given.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
    started = time.perf_counter()
    _ChunkedLogps.apply(hidden, weight, None, targets, 1.0, None, chunk).sum().backward()
    peak_gib = memory(given.device)
    seconds = time.perf_counter() - started
    gradients = (weight.numel() + hidden.numel()) * weight.element_size() / 2**30
    print(
        f"head       {tokens:,} tokens, {words:,} words: {peak_gib - before - gradients:.2f} GiB beyond weights and "
        f"gradients, {8 * tokens * width * words / seconds / 1e12:.2f} T operations/s"
    )
    print(f"head       weight's gradient in bfloat16, relative error: {exactness()}")


def exactness() -> str:
    """How far the gradient of a head in bfloat16 is from float64 on the same numbers, summed over 32 chunks."""
    from prefkit.train.logps import _ChunkedLogps, _module_logps

    torch.manual_seed(0)
    words, width, tokens, chunk = 4096, 64, 16384, 512
    targets = torch.multinomial(1 / torch.arange(1.0, words + 1), tokens, replacement=True)  # Zipf's law
    hidden, weight = torch.randn(tokens, width).bfloat16(), (torch.randn(words, width) * 0.3).bfloat16()

    def ours(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        weight = weight.clone().requires_grad_()
        _ChunkedLogps.apply(hidden, weight, None, targets, 1.0, None, chunk).sum().backward()
        return weight.grad

    head = torch.nn.Linear(width, words, bias=False, dtype=torch.bfloat16)
    head.weight.data.copy_(weight)
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):  # autograd sums in the weight's dtype
        _module_logps(head, h, t, 1.0, None).sum().backward()
    exact = ours(hidden.double(), weight.double())
    errors = [
        (grad.double() - exact).norm() / exact.norm() for grad in (ours(hidden, weight.float()), head.weight.grad)
    ]
    return f"{errors[0]:.1e} summed in float32, {errors[1]:.1e} in bfloat16"


if __name__ == "__main__":
    main()
