"""Small whole inputs of every kind, which the corpus damages: data, models, a checkpoint, a workdir."""

import json
import pathlib

import jax

from scpo_jax import checkpoint
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import vocabulary
from scpo_jax.models import hf, module, peft
from scpo_jax.models.lora import Lora
from tests import run_helpers

PAIRS = run_helpers.pairs(users=5)
TEXTS = [{"prompt": f"question {i}", "response": f"warm reply {i}"} for i in range(3)]
UNLABELLED = [{"prompt": f"question {i}", "response_a": f"good {i}", "response_b": f"warm {i}"} for i in range(4)]
PROMPTS = [{"prompt": f"question {i}"} for i in range(4)]
OPINION = {
    "question": "Is it so?",
    "selections": "defaultdict(<class 'list'>, {'Chile': [0.7, 0.3], 'Mexico': [0.2, 0.8]})",
    "options": "['Yes', 'No']",
}
PRISM = {
    "survey.jsonl": [
        {"user_id": f"p{i}", "location": {"reside_country": ("Chile", "Mexico")[i % 2]}} for i in range(8)
    ],
    "utterances.jsonl": [
        {
            "utterance_id": f"u{i}", "user_id": f"p{i // 2}", "interaction_id": f"int{i // 2}",
            "user_prompt": f"question {i // 2}", "model_response": f"reply {i}", "score": 10 * (i % 5),
        }
        for i in range(16)
    ],
}  # fmt: skip
TINY = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
CARD = {"method": "scpo", "group": "", "max_length": 64, "encoding": "pair", "score_mean": 0.0, "score_std": 1.0}


class Whole:
    """A folder with one of each."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.pairs = run_helpers.write_rows(folder / "pairs.jsonl", PAIRS)
        self.texts = run_helpers.write_rows(folder / "texts.jsonl", TEXTS)
        self.config = folder / "config.py"
        self.config.write_text(run_helpers.CONFIG.format(data=str(self.pairs), groups=()), encoding="utf-8")
        self.model, self.causal, self.adapters = (folder / name for name in ("model", "causal", "adapters"))
        self.checkpoint, self.workdir = folder / "checkpoint", folder / "work"
        words = [row[side] for row in PAIRS for side in ("prompt", "chosen", "rejected")]
        tokenizer = vocabulary.make_tokenizer(words, 200, 64)
        config = TINY | {"model_type": "bert", "vocab_size": len(tokenizer)}
        made = loaded(config, tokenizer)
        _save_folder(made, self.model)
        causal = vocabulary.make_causal_tokenizer(words, 200, 64)
        _save_folder(loaded(TINY | {"model_type": "llama", "vocab_size": len(causal)}, causal), self.causal)
        adapted, params = module.adapt(made.model, made.params, Lora(2, 4.0, ("query",)), jax.random.key(1))
        peft.save(adapted, params, str(self.model), self.adapters)
        checkpoint.save(self.checkpoint, made)
        checkpoint.save(self.workdir / "checkpoints" / "global", made._replace(card=CARD | {"method": "global"}))
        checkpoint.save(self.workdir / "checkpoints" / "scpo" / "chile", made._replace(card=CARD | {"group": "Chile"}))
        stages = {name: {"fingerprint": "0", "config": {}, "finished": "now"} for name in ("global", "train")}
        record = {"schema_version": 2, "stages": stages, "config": {"global_rm.train": True}}
        (self.workdir / "run.json").write_text(json.dumps(record))

    def run(self, folder: pathlib.Path, *flags: str) -> list[str]:
        """`scpo run` of the stage that reads data and model."""
        own = ["--stages=prepare", "--config.global_rm.groups="]
        return ["run", f"--config={self.config}", f"--workdir={folder / 'work'}", *own, *flags]

    def command(self, name: str, folder: pathlib.Path, **flags) -> list[str]:
        """A command that reads a file and scores with the model."""
        flags = {"model": self.model} | flags | {"output": folder / "out.jsonl"}
        return [name, *(f"--{flag}={value}" for flag, value in flags.items())]

    def score(self, folder: pathlib.Path, **flags) -> list[str]:
        """`scpo score`, of the whole texts by the whole model."""
        return self.command("score", folder, **{"input": self.texts} | flags)


def loaded(config: dict, tokenizer) -> Loaded:
    """A model with random weights."""
    model = module.build(config)
    return Loaded(model, module.init(model, jax.random.key(0)), tokenizer, CARD)


def _save_folder(made: Loaded, folder: pathlib.Path) -> None:
    hf.save(made.model, made.params, folder)
    hf.save_tokenizer(made.tokenizer, folder)
