"""The whole pipeline with a tiny Llama that starts from a local folder, in the simulated world; and its export."""

import json

import jax
import numpy as np
import pytest

from scpo_jax import checkpoint
from scpo_jax.models import hf, module
from tests import chat_helpers, run_helpers
from tests import model_helpers as helpers

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIG = """
from scpo_jax.configs import base


def get_config():
    config = base.get_config()
    config.data.groups = ("Chile", "Mexico")
    config.data.test_size = 0.3
    config.data.simulated.users_per_group = 8
    config.model.name_or_path = {folder!r}
    config.model.max_length = 128
    config.global_rm.train = True
    config.global_rm.groups = ("United States", "United Kingdom")
    config.global_rm.max_steps = 4
    config.global_rm.learning_rate = 1e-3
    config.scpo.methods = ("scpo", "full")
    config.train.max_steps = 4
    config.train.learning_rate = 1e-2
    return config
"""
ROWS = [
    {"prompt": "How do I cook rice?", "response": "Please rinse it."},
    {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Rice?"}], "response": "Yes."},
    {"prompt": "user: Rice?", "response": ""},
]


def make_model(folder) -> None:
    """A tiny Llama with random weights in a Hugging Face folder."""
    texts = ["How do I cook rice ? Please rinse it . Be kind Yes the a of to and you I is that . , ! ' :"]
    tokenizer = chat_helpers.make_tokenizer(texts)
    config = helpers.LLAMA31 | SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
    model = module.build(config)
    hf.save(model, module.init(model, jax.random.key(0)), folder)
    hf.save_tokenizer(tokenizer, folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder of the model, workdir) of a finished run."""
    folder = tmp_path_factory.mktemp("llama")
    make_model(folder / "model")
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder / "model")), encoding="utf-8")
    flags = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'work'}"]
    with run_helpers.compiling(optimized=False):
        assert run_helpers.scpo("run", *flags) == 0
    return folder


def test_a_run_from_a_folder_of_a_llama(finished):
    start = hf.load(finished / "model")[1]
    loaded = checkpoint.load(finished / "work/checkpoints/global")
    assert loaded.model.family == "llama" and loaded.model.reads == "last"
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start, loaded.params)
    assert min(jax.tree.leaves(moved["layers"])) > 1e-4 and moved["score"]["kernel"] > 1e-4
    report = json.loads((finished / "work/reports/evaluation.json").read_text())
    assert set(report["methods"]) == {"global", "scpo", "full"}
    assert all(record["all"]["n"] > 0 for record in report["methods"]["scpo"].values())
    findings = json.loads((finished / "work/reports/guards.json").read_text())["findings"]
    assert {f["level"] for f in findings if f["name"] in ("special_tokens", "pad_token", "truncation")} == {"ok"}


def scores(model, folder, *flags) -> list[float]:
    """What `scpo score` gives ROWS."""
    source, output = run_helpers.write_rows(folder / "rows.jsonl", ROWS), folder / "out.jsonl"
    assert run_helpers.scpo("score", f"--model={model}", f"--input={source}", f"--output={output}", *flags) == 0
    return [row["score"] for row in run_helpers.read_rows(folder / "out.jsonl")]


@pytest.mark.parity
def test_scores_are_those_of_transformers_with_the_export(finished, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    chile = finished / "work/checkpoints/scpo/chile"
    ours = scores(chile, tmp_path)
    assert run_helpers.scpo("export", f"--checkpoint={chile}", f"--output={tmp_path / 'export'}") == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    for row, score in zip(ROWS, ours, strict=True):
        prompt = row["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = [*messages, {"role": "assistant", "content": row["response"]}]
        ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0, 0].item()
        assert score == pytest.approx(theirs, abs=1e-5)
    assert np.std(ours) > 1e-3
