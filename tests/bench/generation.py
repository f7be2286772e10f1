"""Tokens a second of generation, here and in transformers, of the same model, prompts and number of new tokens.

    python -m tests.bench.generation --model=../shared/data/stories260k --rows=32 --prompt=32 --new_tokens=128

Greedy, float32, all rows to the last token; the best of three runs after one that compiles. Needs torch.
"""

import time

import jax
import numpy as np
from absl import app, flags

from scpo_jax import sampling, sharding
from scpo_jax.models import hf

MODEL = flags.DEFINE_string("model", "../shared/data/stories260k", "Hugging Face folder of a language model")
ROWS = flags.DEFINE_integer("rows", 32, "prompts at once")
PROMPT = flags.DEFINE_integer("prompt", 32, "tokens of each prompt")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "tokens of each response")
RUNS = 3


def seconds(run) -> tuple[float, np.ndarray]:
    """(seconds of the fastest run, the tokens)."""
    tokens, best = run(), float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        tokens = run()
        best = min(best, time.perf_counter() - start)
    return best, tokens


def ours(folder, prompts: np.ndarray, new_tokens: int):
    """Runs our generation."""
    model, params = hf.load_language_model(folder)
    settings = sampling.Sampling(end_ids=(), pad_id=0, temperature=0.0)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    sampler = sampling.make_sampler(model, mesh, settings, "float32", "float32")
    params = jax.device_put(params, jax.devices()[0])
    batch = sampling.left_pad(list(prompts), range(len(prompts)), prompts.shape, 0)
    return lambda: np.asarray(sampler(params, batch, np.uint32(0), new_tokens).tokens)


def theirs(folder, prompts: np.ndarray, new_tokens: int):
    """Runs that of transformers."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(prompts).long()
    options = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "pad_token_id": 0}
    options |= {"attention_mask": torch.ones_like(ids), "use_cache": True, "eos_token_id": None}

    def run():
        with torch.inference_mode():
            return model.generate(ids, **options)[:, ids.shape[1] :].numpy()

    return run


def main(_) -> None:
    vocabulary = hf.load_language_model(MODEL.value)[1]["embeddings"]["word"]["embedding"].shape[0]
    prompts = np.random.default_rng(0).integers(3, vocabulary, (ROWS.value, PROMPT.value))
    found = {name: seconds(make(MODEL.value, prompts, NEW_TOKENS.value)) for name, make in
             (("scpo", ours), ("transformers", theirs))}  # fmt: skip
    for name, (best, tokens) in found.items():
        print(f"{name:12} {best:.3f} s, {tokens.size / best:,.0f} tokens/s")
    same = float(np.mean(found["scpo"][1] == found["transformers"][1]))
    print(
        f"{found['transformers'][0] / found['scpo'][0]:.1f} times as fast; {100 * same:.2f} % of the tokens are equal"
    )


if __name__ == "__main__":
    app.run(main)
