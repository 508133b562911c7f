"""Chat templates with the structure of well-known families, and a tokenizer that has their special tokens."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ALTERNATE = (
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)

# BOS in the template, though the tokenizer adds one as well; contents are stripped.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

# ChatML with a system message of its own where the conversation brings none; no BOS.
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As Qwen 3: thinking stays in the last answer alone, which gets an empty one if it has none.
THINKING = (
    "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\n') %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n"
    "{% if '</think>' in m.content %}{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}{% endif %}"
    "{{ '\n</think>\n\n' }}{% endif %}{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As DeepSeek R1: thinking is opened for the model, and removed from every answer.
NO_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)

# BOS first and EOS behind every answer; no header for answers; the system message stands in the last user message.
MISTRAL = (
    "{% set turns = messages[1:] if messages[0].role == 'system' else messages %}" + ALTERNATE + "{{ bos_token }}"
    "{% for m in turns %}{% if m.role == 'user' %}[INST] "
    "{% if messages[0].role == 'system' and loop.index0 >= turns | length - 2 and (loop.last or loop.revindex == 2) %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)

# No system role, "model" instead of "assistant", contents are stripped.
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set turns = messages %}" + ALTERNATE + "{{ bos_token }}"
    "{% for m in turns %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

# Says nothing of system messages.
DEAF = (
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Template, and what stands behind an answer.
FAMILIES = {
    "Llama 3": (LLAMA3, "<|eot_id|>"),
    "Qwen": (QWEN, "<|im_end|>\n"),
    "Mistral": (MISTRAL, "</s>"),
    "Gemma": (GEMMA, "<end_of_turn>\n"),
}
SPECIAL = (
    "<s> </s> <pad> <|start_header_id|> <|end_header_id|> <|eot_id|> <|im_start|> <|im_end|> <start_of_turn> "
    "<end_of_turn> [INST] [/INST]"
).split()


def tokenizer_of_families(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that, left to itself, puts BOS before a text and EOS behind it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    ends = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    words = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    assert words("a")["input_ids"][0] == words.bos_token_id
    return words
