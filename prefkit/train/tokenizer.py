"""The tokenizer of a run: the model's own, another by name or path, or a byte-level BPE trained on the data set.

Training one is for models that start from random weights: `tokenizer = { vocab_size = 2048 }` reads the messages of
the train split, and the result is kept in RUN/tokenizer, so that resuming uses the same one. It comes with a chat
template of special tokens that no text can be split into by accident. A tokenizer without a chat template is refused:
rendering conversations in a form that the model was never meant for must be somebody's decision. `chat_template`
makes it: the path of a Jinja file, or the name of a built-in template.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import has_file

from prefkit import resolve
from prefkit.errors import TrainError, UsageError, did_you_mean, one_line
from prefkit.manifest import Manifest
from prefkit.train import shards
from prefkit.train.adapters import base_of
from prefkit.train.files import whole_folder
from prefkit.train.hub import local_files_only
from prefkit.train.options import TrainOptions

SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
SPECIAL_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('this template knows system, user and assistant, not ' + message.role) }}{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# What a folder that transformers can load something from has one of.
OF_MODELS = ("config.json", "adapter_config.json", "tokenizer_config.json", "tokenizer.json")

# Built-in templates. "plain" asks nothing of the vocabulary but an end-of-sequence token, so it suits any base model.
TEMPLATES = {
    "plain": (
        "{{ bos_token or '' }}{% for message in messages %}"
        "{{ '### ' + message.role.capitalize() + ':\n' + message.content }}"
        "{{ eos_token if message.role == 'assistant' else '' }}{{ '\n\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
    )
}


def of_run(options: TrainOptions, data: Path, manifest: Manifest, out: Path) -> Any:
    """The tokenizer of a run, with its chat template; a trained one is kept in RUN/tokenizer."""
    model = options.model
    if isinstance(model.tokenizer, dict):
        kept = out / "tokenizer"
        if not kept.exists():
            call = resolve.check("prefkit.train.tokenizer:train_bpe", model.tokenizer, "[model] tokenizer")
            with whole_folder(kept) as folder:
                train_bpe(data, manifest, **call.options).save_pretrained(folder)
        words = load_tokenizer(kept)
    else:
        source = options.located(model.tokenizer or model.path or "")
        words = load_tokenizer(source, trust_remote_code=model.trust_remote_code)
    set_chat_template(words, model.chat_template, options.folder)
    return words


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """A tokenizer by name or path, of an adapter without one its base's; TrainError where there is none."""
    local = local_files_only(name)
    if Path(name).is_dir() and not any(Path(name, file).is_file() for file in OF_MODELS):
        hint = f" Did you mean {name}/model?" if Path(name, "model").is_dir() else ""
        raise TrainError(f'"{name}" is no folder of a model: none of {", ".join(OF_MODELS)} is there.{hint}')
    base = base_of(name, local_files_only=local)
    if base is not None and not has_file(str(name), "tokenizer_config.json", local_files_only=local):
        return load_tokenizer(base, trust_remote_code=trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, local_files_only=local)
    except Exception as error:  # broken files make transformers and tokenizers raise anything
        raise TrainError(f'no tokenizer can be loaded from "{name}": {one_line(error)}') from error


def set_chat_template(tokenizer: Any, chat_template: str | None, folder: Path) -> None:
    """Use a built-in template, or one from a file (relative to `folder`); TrainError if there is none in the end.

    UsageError for a name that stands for neither.
    """
    if chat_template is not None:
        path = folder / chat_template
        if chat_template not in TEMPLATES and not path.is_file():
            raise UsageError(
                f'chat_template = "{chat_template}" is neither a file nor a built-in template.'
                f"{did_you_mean(chat_template, TEMPLATES)}"
            )
        try:
            tokenizer.chat_template = TEMPLATES.get(chat_template) or path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TrainError(f"{path}: not UTF-8, so it is no chat template ({one_line(error)}).") from error
    if not tokenizer.chat_template:
        raise TrainError(
            "the tokenizer has no chat template, so conversations cannot be rendered. Give chat_template = "
            f'"FILE.jinja" under [model], or to evaluate --chat-template FILE; built in: {", ".join(TEMPLATES)}.'
        )


def train_bpe(
    data: Path, manifest: Manifest, *, vocab_size: Annotated[int, Ge(300)], rows: Annotated[int, Ge(1)] = 50_000
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` entries, trained on the messages of the first `rows` rows of the train split."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_contents(data, manifest, rows), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = SPECIAL_TEMPLATE
    return tokenizer


def _contents(data: Path, manifest: Manifest, rows: int) -> Iterator[list[str]]:
    """Texts of all message columns of the train split."""
    for shard in manifest.of_split("train"):
        file = pq.ParquetFile(shards.local(data, shard))
        for batch in file.iter_batches(1024, columns=shards.columns_of_messages(file.schema_arrow)):
            if rows <= 0:
                return
            for column in batch.slice(0, rows).columns:
                messages: pa.StructArray = column.flatten()
                yield messages.field("content").drop_null().to_pylist()
            rows -= len(batch)
