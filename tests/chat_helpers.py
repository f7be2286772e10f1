"""Tokenizers with chat templates as those of Llama 3 and Qwen, of whole words and line breaks."""

import collections

import tokenizers
import transformers

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
QWEN = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|eot|>\n{% endfor %}"
SPECIAL = ("<pad>", "<unk>", "<s>", "<|eot|>", "<|start|>", "<|end|>")


def make_tokenizer(texts, template=LLAMA3, begins=True, **names):
    """A tokenizer of the words of `texts`; `begins` puts the BOS token before every text, `names` are of tokens."""
    words = collections.Counter(" ".join([*texts, "system user assistant a b"]).replace("\n", " \n ").split(" "))
    pieces = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\n|\w+|[^\w\s]"), "removed", invert=True)
    words = sorted({piece for word in words for piece, _ in pieces.pre_tokenize_str(word)} | {"\n"})
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pieces
    if begins:
        backend.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", None, [("<s>", 2)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|eot|>"} | names
    names = {name: token for name, token in names.items() if token}
    more = [token for token in SPECIAL if token not in names.values()]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=more, model_input_names=["input_ids", "attention_mask"],
        **names,
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def tokens(tokenizer, ids) -> list[str]:
    return tokenizer.convert_ids_to_tokens([int(number) for number in ids])
