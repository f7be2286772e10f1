"""Prompts and responses of language models as tokens, and the tokenizer of those from scratch."""

import numpy as np
import pytest

from scpo_jax.data import chat, completions, language_vocabulary
from scpo_jax.errors import InputError
from scpo_jax.models import hf
from tests import chat_helpers
from tests.chat_helpers import tokens

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Rice?"}]
TEXTS = ["How do I cook rice? Please rinse it. Yes, do!", "Rice? Yes, please rinse the rice.", "Be kind.", "Yes."]
ODD = ["  Two  spaces\n\nand lines\t", "Çà et là — 日本 😀", "", "iiiiiiiiii" * 30, "<b> & \"quotes\" 'n it's"]


@pytest.fixture(scope="module")
def tokenizer():
    return language_vocabulary.make_tokenizer(TEXTS, 400, 64)


def test_a_tokenizer_from_scratch_loses_nothing(tokenizer, tmp_path):
    hf.save_tokenizer(tokenizer, tmp_path)
    for one in (tokenizer, hf.load_tokenizer(tmp_path)):
        found = completions.encode(one, [""] * 9, [*TEXTS, *ODD], 64, 1000)
        answers = [text.input_ids[text.token_type_ids == 1] for text in found]
        lengths = np.array([len(ids) for ids in answers])
        padded = np.stack([np.pad(ids, (0, lengths.max() - len(ids))) for ids in answers])
        assert completions.decode(one, padded, lengths, np.ones(9, bool)) == [*TEXTS, *ODD]
    assert tokens(tokenizer, answers[2]) == ["Be", "Ġkind", ".", "<|end|>"]
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id}) == 2
    assert tokenizer.chat_template == hf.load_tokenizer(tmp_path).chat_template == language_vocabulary.TEMPLATE


def test_the_vocabulary_has_the_most_frequent_words_and_does_not_depend_on_their_order(tokenizer):
    small = language_vocabulary.make_tokenizer(TEXTS, 5 + 256 + 4, 64)
    assert small.get_vocab().keys() - set(language_vocabulary.SPECIAL) >= {"ĠYes", "Ġdo", "Ġrice", "Ġrinse"}
    assert len(small) == 265
    assert language_vocabulary.make_tokenizer(TEXTS[::-1], 265, 64).get_vocab() == small.get_vocab()
    assert len(tokenizer) < 400


def test_a_prompt_ends_where_the_response_begins(tokenizer):
    (plain, talk) = completions.encode_prompts(tokenizer, ["Rice?", MESSAGES], 64)
    assert tokens(tokenizer, plain) == ["<|user|>", "Rice", "?", "<|assistant|>"]
    assert tokens(tokenizer, talk)[:4] == ["<|system|>", "Be", "Ġkind", "."]
    assert talk[4:].tolist() == plain.tolist()
    whole = completions.encode(tokenizer, [MESSAGES], ["Yes, do!"], 64, 8)[0]
    assert tokenizer.decode(whole.input_ids) == chat.render(tokenizer, MESSAGES, "Yes, do!").text
    assert tokens(tokenizer, whole.input_ids[whole.token_type_ids == 1]) == ["Yes", ",", "Ġdo", "!", "<|end|>"]
    assert not whole.cut


def test_long_texts_lose_the_beginning_of_the_prompt_and_the_end_of_the_response():
    """The BOS token stays, and comes once whether the template or the tokenizer puts it there."""
    for begins in (True, False):
        named = chat_helpers.make_tokenizer(TEXTS, begins=begins)
        found = completions.encode(named, ["Rice ? Yes", "Rice ?"], ["Yes , please", "Yes"], 5, 3)
        assert tokens(named, found[0].input_ids[-3:]) == ["Yes", ",", "please"] and found[0].cut == 1
        assert tokens(named, found[1].input_ids[-2:]) == ["Yes", "<|eot|>"] and found[1].cut == 0
        assert [len(text.input_ids) for text in found] == [8, 7]
        if begins:
            assert all(text.input_ids[0] == named.bos_token_id for text in found)
    plain = chat_helpers.make_tokenizer(TEXTS, template=None)
    assert tokens(plain, completions.encode_prompts(plain, ["Rice ?"], 9)[0]) == ["<s>", "Rice", "?", "\n", "\n"]
    with pytest.raises(InputError, match="no end token"):
        completions.encode(chat_helpers.make_tokenizer(TEXTS, eos_token=None), ["Rice ?"], ["Yes"], 5, 3)


def test_decoding_leaves_out_the_end_and_padding_and_handles_nothing(tokenizer):
    end, yes = tokenizer.eos_token_id, tokenizer("Yes")["input_ids"][0]
    rows = np.array([[yes, yes, end, 0], [yes, yes, yes, yes], [end, 0, 0, 0], [0, 0, 0, 0]])
    ended, lengths = np.array([True, False, True, False]), np.array([3, 4, 1, 0])
    assert completions.decode(tokenizer, rows, lengths, ended) == ["YesYes", "YesYesYesYes", "", ""]
