"""Token ids: how a text is cut, the reference's two formats, shapes and batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scpo_jax.data import encoding, vocabulary

WORDS = [f"w{i}" for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary.make_tokenizer([" ".join(WORDS)], 400, 512)


def encode(tokenizer, prompt, response, max_length=128, how="pair", training=False):
    function = encoding.encode_for_training if training else encoding.encode_for_scoring
    return function(tokenizer, [prompt], [response], max_length, how)[0]


def words(tokenizer, ids) -> list[str]:
    return tokenizer.convert_ids_to_tokens([int(i) for i in ids])


def text(first: int, n: int) -> str:
    return " ".join(WORDS[first : first + n])


def test_a_short_text_is_the_text_pair(tokenizer):
    got = encode(tokenizer, text(0, 3), text(100, 2))
    assert words(tokenizer, got.input_ids) == ["[CLS]", "w0", "w1", "w2", "[SEP]", "w100", "w101", "[SEP]"]
    assert got.token_type_ids.tolist() == [0, 0, 0, 0, 0, 1, 1, 1] and got.cut == 0


@pytest.mark.parametrize(
    ("prompt", "response", "kept_prompt", "kept_response"),
    [
        (50, 75, 50, 75),  # 128 with the three special tokens: just fits
        (50, 80, 50, 75),  # the response is cut from the right
        (70, 56, 64, 56),  # the prompt from the left, to max_length - 64
        (70, 10, 70, 10),  # nothing to cut
        (120, 10, 64, 10),  # once too long, the prompt is cut to 64 though 115 would fit
        (200, 90, 64, 61),
        (0, 200, 0, 125),
        (200, 0, 64, 0),
    ],
)
def test_the_cut(prompt, response, kept_prompt, kept_response, tokenizer):
    got = encode(tokenizer, text(0, prompt), text(100, response))
    expected = ["[CLS]", *WORDS[prompt - kept_prompt : prompt], "[SEP]", *WORDS[100 : 100 + kept_response], "[SEP]"]
    assert words(tokenizer, got.input_ids) == expected and len(expected) <= 128
    assert got.cut == prompt + response - kept_prompt - kept_response
    assert got.token_type_ids.tolist() == [0] * (kept_prompt + 2) + [1] * (kept_response + 1)


def test_training_sees_what_is_scored(tokenizer):
    for n in (3, 200):
        scored, trained = (encode(tokenizer, text(0, n), text(50, 90), training=t) for t in (False, True))
        np.testing.assert_array_equal(scored.input_ids, trained.input_ids)


def test_a_text_is_encoded_alone(tokenizer):
    """The other side of a pair, or of a batch, does not decide what is cut."""
    prompts, responses = [text(0, 90)] * 3, [text(100, 60), text(150, 5), text(10, 120)]
    together = encoding.encode_for_scoring(tokenizer, prompts, responses, 128, "pair")
    for prompt, response, got in zip(prompts, responses, together, strict=True):
        np.testing.assert_array_equal(got.input_ids, encode(tokenizer, prompt, response).input_ids)


@settings(max_examples=30, deadline=None)
@given(prompt=st.integers(0, 290), response=st.integers(0, 190), max_length=st.integers(8, 256))
def test_every_cut_fits(tokenizer, prompt, response, max_length):
    got = encode(tokenizer, text(0, prompt), text(100, response), max_length)
    assert len(got.input_ids) == len(got.token_type_ids) <= max_length
    assert len(got.input_ids) + got.cut == prompt + response + 3
    assert words(tokenizer, got.input_ids).count("[SEP]") == 2


def test_the_formats_of_the_reference(tokenizer):
    joined = encode(tokenizer, text(0, 4), text(9, 5), 12, "reference", training=True)
    whole = ["[CLS]", *WORDS[:4], "[SEP]", *WORDS[9:14], "[SEP]"]
    assert words(tokenizer, joined.input_ids) == whole and not joined.token_type_ids.any()
    cut = encode(tokenizer, text(0, 4), text(9, 5), 9, "reference", training=True)
    assert words(tokenizer, cut.input_ids) == [*whole[:8], "[SEP]"] and cut.cut == 3
    scored = encode(tokenizer, text(0, 200), text(9, 100), 12, "reference")
    assert len(scored.input_ids) == 303 and scored.cut == 0 and scored.token_type_ids.sum() == 101
