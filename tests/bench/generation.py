"""Tokens a second of generation, here and in transformers, of the same model, prompts and number of new tokens.

    python -m tests.bench.generation --model=../shared/data/stories260k --rows=32 --prompt=32 --new_tokens=128

float32, all rows to the last token; greedy, or with `--temperature=1` drawn from all tokens as PPO does. torch has one
thread or two, whichever is faster; all take turns, and the fastest of several runs after a first one counts.
"""

import time
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags

from scpo_jax import sampling, sharding
from scpo_jax.models import hf

MODEL = flags.DEFINE_string("model", "../shared/data/stories260k", "Hugging Face folder of a language model")
ROWS = flags.DEFINE_integer("rows", 32, "prompts at once")
PROMPT = flags.DEFINE_integer("prompt", 32, "tokens of each prompt")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "tokens of each response")
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: greedy")
RUNS = 5


def fastest(runs: dict[str, Callable]) -> dict[str, tuple[float, np.ndarray]]:
    """(seconds of the fastest run, the tokens) of each by its name."""
    tokens, seconds = {name: run() for name, run in runs.items()}, dict.fromkeys(runs, float("inf"))
    for _ in range(RUNS):
        for name, run in runs.items():
            start = time.perf_counter()
            tokens[name] = run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: (seconds[name], tokens[name]) for name in runs}


def ours(folder, prompts: np.ndarray, new_tokens: int, temperature: float):
    """Runs our generation."""
    model, params = hf.load_language_model(folder)
    settings = sampling.Sampling(end_ids=(), pad_id=0, temperature=temperature)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    sampler = sampling.make_sampler(model, mesh, settings, "float32", "float32")
    params = jax.device_put(params, jax.devices()[0])
    batch = sampling.left_pad(list(prompts), range(len(prompts)), prompts.shape, 0)
    return lambda: sampling.respond(sampler, params, batch, np.uint32(0), new_tokens).tokens


def theirs(folder, prompts: np.ndarray, new_tokens: int, temperature: float, threads: int):
    """Runs that of transformers."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(prompts).long()
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "pad_token_id": 0}
    options |= {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    options |= {"attention_mask": torch.ones_like(ids), "use_cache": True, "eos_token_id": None}

    def run():
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return model.generate(ids, **options)[:, ids.shape[1] :].numpy()

    return run


def main(_) -> None:
    vocabulary = hf.load_language_model(MODEL.value)[1]["embeddings"]["word"]["embedding"].shape[0]
    prompts = np.random.default_rng(0).integers(3, vocabulary, (ROWS.value, PROMPT.value))
    how = MODEL.value, prompts, NEW_TOKENS.value, TEMPERATURE.value
    runs = {f"transformers, {threads} thread(s)": theirs(*how, threads) for threads in (1, 2)}
    found = fastest({"scpo": ours(*how), **runs})
    for name, (seconds, tokens) in found.items():
        print(f"{name:26} {seconds:.3f} s, {tokens.size / seconds:,.0f} tokens/s")
    seconds, tokens = found.pop("scpo")
    print(f"{min(other for other, _ in found.values()) / seconds:.1f} times as fast")
    if not TEMPERATURE.value:
        same = [np.mean(tokens == other) for _, other in found.values()]
        print(f"{100 * min(same):.2f} % of the tokens are equal")


if __name__ == "__main__":
    app.run(main)
