"""PPO of a real language model, stories260k, against a text reward model with a tokenizer of its own.

    python -m tests.bench.stories --stories=../shared/data/stories260k --steps=50

The reward model is an encoder from scratch that stage train of a tiny run makes; what it likes means nothing, but it
is a function of the text. Prints score, KL to the reference and length as the policy learns.
"""

import json
import pathlib
import tempfile

from absl import app, flags, logging

from tests import run_helpers

STORIES = flags.DEFINE_string("stories", "../shared/data/stories260k", "Hugging Face folder of a language model")
STEPS = flags.DEFINE_integer("steps", 50, "iterations of PPO")
OPENINGS = ("Once upon a time", "Tom had a red ball.", "Lily saw a big dog.", "One day, a bird", "The sun was hot.")
KEYS = {
    "sft.max_steps": 0, "batch_size": 64, "num_mini_batches": 2, "num_ppo_epochs": 2, "learning_rate": 3e-4,
    "new_tokens": 48, "max_prompt": 16, "missing_eos_penalty": 0.0, "kl_coef": 0.05, "value": "own",
}  # fmt: skip


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        world = run_helpers.World(pathlib.Path(folder))
        prompts = run_helpers.write_rows(world.folder / "prompts.jsonl", [{"prompt": text} for text in OPENINGS])
        keys = KEYS | {
            "steps": STEPS.value, "name_or_path": str(pathlib.Path(STORIES.value).resolve()), "prompts": str(prompts),
            "groups": f'"{run_helpers.GROUPS[0]}"',
        }  # fmt: skip
        flags_ = [f"--config.policy.{key}={value}" for key, value in keys.items()]
        assert world.run("--config.checkpoint.every_steps=0", *flags_) == 0
        rows = run_helpers.read_rows(world.workdir / "metrics.jsonl")
        card = json.loads((world.workdir / "run.json").read_text())["stages"]["policy"]
        own = [row for row in rows if row["training"].startswith("policy/")]
        for row in own[:: max(len(own) // 10, 1)] + own[-1:]:
            print(
                f"step {row['step']:3}  normalised score {row['objective/scores_normalised']:6.3f}  KL "
                f"{row['objective/kl']:6.2f} nats  length {row['val/length']:.1f}"
            )
        print(f"stage policy took {card['seconds']} s")


if __name__ == "__main__":
    app.run(main)
