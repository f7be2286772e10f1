"""`configs/demo_lora.py` in small: SCPO by adapters of a Llama from scratch, through the same pipeline as the demo."""

import json

import numpy as np
import pytest

from scpo_jax import checkpoint
from scpo_jax.data import chat, vocabulary
from scpo_jax.models import lora
from tests import run_helpers
from tests.run_helpers import refusal

SMALL = [
    "--config=configs/demo_lora.py", "--config.data.simulated.users_per_group=20", "--config.data.groups=Chile,Mexico",
    "--config.global_rm.max_steps=6", "--config.train.max_steps=6", "--config.train.eval_every=0",
    "--config.train.warmup_steps=0", "--config.scpo.methods=scpo", "--config.model.scratch.hidden_size=16",
    "--config.model.scratch.intermediate_size=32", "--config.model.scratch.num_hidden_layers=1",
]  # fmt: skip


def test_a_run_by_adapters_of_a_llama_from_scratch(tmp_path):
    assert run_helpers.scpo("run", *SMALL, f"--workdir={tmp_path}") == 0
    start, chile = (checkpoint.load(tmp_path / "checkpoints" / name) for name in ("global", "scpo/chile"))
    assert (start.model.family, start.model.reads, start.model.lora) == ("llama", "last", None)
    assert chile.model.lora == lora.Lora(8, 16.0, ("all-linear",))
    assert np.abs(chile.params["layers"]["feed_forward"]["gate"]["lora_b"]).min() > 0
    np.testing.assert_array_equal(
        chile.params["layers"]["attention"]["key"]["kernel"], start.params["layers"]["attention"]["key"]["kernel"]
    )
    report = json.loads((tmp_path / "reports/evaluation.json").read_text())
    assert set(report["methods"]["scpo"]) == {"Chile", "Mexico"} and report["bayes"]["Chile"]["all"] > 0.6
    findings = json.loads((tmp_path / "reports/guards.json").read_text())["findings"]
    assert {f["level"] for f in findings if f["name"] in ("special_tokens", "pad_token", "truncation")} == {"ok"}


def test_the_tokenizer_of_a_causal_model_from_scratch():
    """A beginning, turns with roles that end with the end token, and none of these falls apart."""
    tokenizer = vocabulary.make_causal_tokenizer(["How do I cook rice? Rinse it."], 60, 64)
    text = chat.render(tokenizer, [{"role": "system", "content": "Rinse"}, {"role": "user", "content": "rice?"}], "It.")
    assert text.text == "[BOS][system]Rinse[EOS][user]rice?[EOS][assistant]It.[EOS]"
    assert text.text[text.start : text.end] == "It."
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text.text, add_special_tokens=False)["input_ids"])
    expected = "[BOS] [system] rinse [EOS] [user] rice ? [EOS] [assistant] it . [EOS]"
    assert tokens == expected.split() and chat.begins(tokenizer)
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 4


def test_an_unknown_family(tmp_path, capsys):
    line = refusal(capsys, "run", *SMALL, f"--workdir={tmp_path}", "--config.model.scratch.family=gpt2")
    assert "config.model.scratch.family" in line and "bert, llama" in line


@pytest.mark.parametrize("words", [[], ["a b c"]])
def test_both_tokenizers_share_their_words(words):
    encoder, causal = (make(words, 40, 16) for make in (vocabulary.make_tokenizer, vocabulary.make_causal_tokenizer))
    plain = [set(t.get_vocab()) - set(t.all_special_tokens) for t in (encoder, causal)]
    assert plain[0] == plain[1] and len(plain[0]) == (6 if words else 0)
