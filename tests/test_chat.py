"""Conversations: as transformers renders them, one BOS, the end kept, cut by the rule of all texts; and their guard."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_jax import guards, score, tokens
from scpo_jax.data import chat, encoding
from scpo_jax.data.preferences import as_text
from scpo_jax.errors import InputError
from scpo_jax.models import hf
from tests import chat_helpers as helpers
from tests.test_guards import WORDS, honest

HEADER = "<|start|> {} <|end|> \n \n"
NUMBERS = [f"w{i}" for i in range(300)]
TURNS = [
    {"role": "system", "content": "w1 w2"},
    {"role": "user", "content": "w3"},
    {"role": "assistant", "content": "w4 \n w5"},
    {"role": "user", "content": "w6"},
]


def tokenizer(template=helpers.LLAMA3, begins=True, **names):
    return helpers.make_tokenizer(NUMBERS, template, begins, **names)


def text(first, n):
    return " ".join(NUMBERS[first : first + n])


def encode(own, prompt, response, max_length=128):
    [got] = encoding.encode_for_scoring(own, [prompt], [response], max_length, "chat")
    return got


@pytest.mark.parametrize("template", [helpers.LLAMA3, helpers.QWEN])
@pytest.mark.parametrize("prompt", ["w3 w4", TURNS])
def test_a_conversation_is_what_the_template_makes_of_it(template, prompt):
    own = tokenizer(template, begins=template == helpers.LLAMA3)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = [*messages, {"role": "assistant", "content": "w8 w9"}]
    wanted = own.apply_chat_template(messages, return_dict=True)["input_ids"]
    got = encode(own, prompt, "w8 w9")
    assert got.input_ids.tolist() == wanted and got.cut == 0 and not got.token_type_ids.any()
    again = encoding.encode_for_training(own, [prompt], ["w8 w9"], 128, "chat")[0]
    np.testing.assert_array_equal(again.input_ids, got.input_ids)


@pytest.mark.parametrize(
    ("template", "begins", "wanted"),
    [
        (helpers.LLAMA3, True, f"<s> {HEADER.format('user')} w1 <|eot|> {HEADER.format('assistant')} w2 <|eot|>"),
        (helpers.QWEN, False, "<|start|> user \n w1 <|eot|> \n <|start|> assistant \n w2 <|eot|> \n"),
        (helpers.QWEN, True, "<s> <|start|> user \n w1 <|eot|> \n <|start|> assistant \n w2 <|eot|> \n"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", True, "<s> w1 \n w2 \n <|eot|>"),
        ("", True, "<s> w1 \n \n w2 <|eot|>"),
        ("", False, "<s> w1 \n \n w2 <|eot|>"),
    ],
)  # fmt: skip
def test_one_bos_and_an_end(template, begins, wanted):
    own = tokenizer(template, begins)
    assert " ".join(helpers.tokens(own, encode(own, "w1", "w2").input_ids)) == wanted


def test_without_a_bos_token_there_is_none():
    own = tokenizer("", begins=False, bos_token=None)
    assert helpers.tokens(own, encode(own, "w1", "w2").input_ids) == ["w1", "\n", "\n", "w2", "<|eot|>"]


@pytest.mark.parametrize(
    ("prompt", "response", "kept_prompt", "kept_response"),
    [
        (53, 62, 53, 62),  # 128 with what the template writes: 5 before, 6 between, and bos and end
        (53, 63, 53, 62),  # the response is cut from the right
        (80, 60, 58, 60),  # the prompt from the left, to max_length - 64 with the 6 between
        (80, 90, 58, 62),
        (200, 0, 58, 0),
    ],
)
def test_the_cut(prompt, response, kept_prompt, kept_response):
    own = tokenizer()
    got = encode(own, text(0, prompt), text(100, response))
    found = helpers.tokens(own, got.input_ids)
    words = [word for word in found if word.startswith("w")]
    assert words == NUMBERS[prompt - kept_prompt : prompt] + NUMBERS[100 : 100 + kept_response]
    assert len(found) <= 128 and (found[0], found[-1]) == ("<s>", "<|eot|>") and found.count("<s>") == 1
    assert len(found) + got.cut == prompt + response + 13


@settings(max_examples=20, deadline=None)
@given(prompt=st.integers(0, 290), sizes=st.tuples(*[st.integers(0, 190)] * 2), max_length=st.integers(8, 256))
def test_every_cut_fits_and_both_sides_lose_the_same_of_the_prompt(prompt, sizes, max_length):
    own = tokenizer(helpers.QWEN, begins=True)
    whole = [encode(own, text(0, prompt), text(100, size), 10_000) for size in sizes]
    cut = [encode(own, text(0, prompt), text(100, size), max_length) for size in sizes]
    for own_cut, full in zip(cut, whole, strict=True):
        assert len(own_cut.input_ids) == min(max_length, len(full.input_ids)) or own_cut.cut
        assert len(own_cut.input_ids) <= max_length
        assert helpers.tokens(own, own_cut.input_ids[-2:]) == ["<|eot|>", "\n"]


@pytest.mark.parametrize("response", ["e", "\n", "<|eot|>", "w1", "  w2 \n", chat.PLACE, "", "user"])
@pytest.mark.parametrize("template", [helpers.LLAMA3, helpers.QWEN, ""])
@pytest.mark.parametrize("prompt", ["w1 w2", f"w1 {chat.PLACE}", ""])
def test_the_response_is_found_in_the_text(response, template, prompt):
    got = chat.render(tokenizer(template), prompt, response)
    wanted = response.strip() if template == helpers.LLAMA3 else response
    assert got.text[got.start : got.end] == wanted


def test_what_a_template_moves_counts_as_response():
    """As Qwen3's, which writes thoughts that it finds in the response before the rest of it."""
    thoughts = "{% if m['role'] == 'assistant' %}[{{ parts[0] if parts | length > 1 }}]\n{% endif %}"
    template = "<|start|>{{ m['role'] }}\n" + thoughts + "{{ parts[-1] }}<|eot|>\n{% endfor %}"
    template = "{% for m in messages %}{% set parts = m['content'].split('/') %}" + template
    got = chat.render(tokenizer(template), "w1", "w2/w3")
    assert got.text[got.start : got.end] == "w2]\nw3" and got.text[got.end :] == "<|eot|>\n"


def test_a_template_that_refuses_gives_one_line():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
    with pytest.raises(InputError, match="refuses the prompt 'system: w1 w2.*no system prompts"):
        encode(tokenizer(template), TURNS, "w9")


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(InputError, match="no end token"):
        encode(tokenizer(eos_token=None), "w1", "w2")


@pytest.mark.parametrize("template", [helpers.QWEN, {"default": helpers.QWEN, "tool_use": "another"}])
def test_the_template_travels_with_the_tokenizer(template, tmp_path):
    hf.save_tokenizer(tokenizer(template), tmp_path)
    assert hf.load_tokenizer(tmp_path).chat_template == helpers.QWEN
    written = {path.name for path in tmp_path.iterdir() if "template" in path.name}
    assert "chat_template.jinja" in written and "chat_template.jinja" in hf.SMALL_FILES


def test_causal_models_have_no_reference_format():
    assert encoding.form("first", "reference") == "reference" and encoding.form("last", "pair") == "chat"
    with pytest.raises(InputError, match="config.model.encoding=reference"):
        encoding.form("last", "reference")


def test_messages_have_the_key_of_their_text():
    rows = [{"prompt": "user: hi", "messages": [{"role": "user", "content": "hi"}], "chosen": "a", "rejected": "b"}]
    texts = tokens.texts_of(rows)
    assert list(texts) == [score.text_key("user: hi", side) for side in "ab"]
    assert texts[score.text_key("user: hi", "a")] == (rows[0]["messages"], "a")


def found(rows, template=helpers.LLAMA3, max_length=256):
    """name -> level of all that is not ok of honest pairs as conversations."""
    own = helpers.make_tokenizer([*WORDS, *(row["prompt"] for row in rows), ". ! ?"], template)
    keys = tokens.texts_of(rows)
    encoded = encoding.encode_for_scoring(own, *zip(*keys.values(), strict=True), max_length, "chat")
    findings, _ = guards.check(rows, own, dict(zip(keys, encoded, strict=True)), "chat")
    return {finding.name: finding.level for finding in findings if finding.level != "ok"}


def with_turns(rows):
    """The same pairs, some after a conversation of several turns."""
    turns = [TURNS if i % 2 else [{"role": "user", "content": f"w{i}"}] for i in range(len(rows))]
    return [row | {"prompt": as_text(own), "messages": own} for row, own in zip(rows, turns, strict=True)]


@pytest.mark.parametrize("template", [helpers.LLAMA3, helpers.QWEN, ""])
def test_honest_conversations_are_not_suspected(template):
    assert found(honest(), template) == {}
    assert found(with_turns(honest()), template) == {}
    assert "special_tokens" not in found(honest(), template, max_length=32)


@pytest.mark.parametrize("mark", ["<|eot|>", "<|start|>"])
def test_marks_written_in_texts_stop(mark):
    everywhere = [row | {"prompt": f"{row['prompt']} {mark}"} for row in honest()]
    assert found(everywhere) == {"special_tokens": "stop"}


def test_a_bos_written_in_texts_stops_conversations_too():
    rows = [row | {"prompt": f"{row['prompt']} <s>"} for row in honest()]
    rows = [row | {"messages": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    rows = [row | {"prompt": as_text(row["messages"])} for row in rows]
    assert found(rows) == {"special_tokens": "stop"}


def test_a_template_that_begins_twice_stops():
    assert found(honest(), "{{ bos_token }}" + helpers.LLAMA3) == {"special_tokens": "stop"}
