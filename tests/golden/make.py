"""Writes `reference.npz`, the compact copy of the reference's numbers that a clone without ../shared tests against.

    python tests/golden/make.py ../shared/reference

Numbers only: the random model's weights, token ids of the synthetic texts in both formats, rewards, pairs, batches,
losses. See the README.md of ../shared/reference for what each of them is and how it was made.
"""

import json
import pathlib
import sys

import numpy as np
import safetensors.numpy
import transformers

from scpo_jax.data import encoding


def ragged(rows):
    """Lists of numbers as one flat array and their lengths."""
    return np.concatenate([np.asarray(row) for row in rows]), np.array([len(row) for row in rows], np.int32)


def main(folder: pathlib.Path) -> None:
    def expected(name):
        return json.loads((folder / "expected" / f"{name}.json").read_text())

    arrays = {f"model/{k}": v for k, v in safetensors.numpy.load_file(folder / "model" / "model.safetensors").items()}
    config = (folder / "model" / "config.json").read_bytes()
    arrays["model_config"] = np.frombuffer(config, np.uint8)

    rewards = expected("ref_rewards")["rewards"]
    lines = (folder / "prism_like" / "utterances.jsonl").read_text(encoding="utf-8").split("\n")
    rows = {row["utterance_id"]: row for row in (json.loads(line) for line in lines if line)}
    ids = list(rewards)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    prompts, responses = [rows[i]["user_prompt"] for i in ids], [rows[i]["model_response"] for i in ids]
    formats = {"scoring": encoding.encode_for_scoring, "training": encoding.encode_for_training}
    for name, encode in formats.items():
        texts = encode(tokenizer, prompts, responses, 512, "reference")
        flat, lengths = ragged([text.input_ids for text in texts])
        arrays[f"{name}_ids"], arrays[f"{name}_lengths"] = flat.astype(np.int16), lengths.astype(np.int16)
    arrays["utterances"] = np.array([int(i.removeprefix("ut")) for i in ids], np.int32)
    arrays["rewards"] = np.array([rewards[i] for i in ids], np.float32)

    split = expected("split")
    for part in ("train", "test"):
        arrays[f"split_{part}"] = np.array([int(user.removeprefix("user")) for user in split[part]], np.int32)
    batches, trained = expected("batch_order"), expected("trained_rewards")
    countries = expected("config")["target_countries_in_order"]
    reports = {name: expected(name) for name in ("full_report", "partial_report")}
    number = {i: place for place, i in enumerate(ids)}
    for c, country in enumerate(countries):
        for name in ("pairs_train", "pairs_test", "edited_train", "edited_test"):
            pairs = expected(name)[country]
            pairs = pairs["pairs"] if isinstance(pairs, dict) else pairs
            arrays[f"{c}/{name}"] = np.array([[number[i] for i in pair] for pair in pairs], np.int16)
        arrays[f"{c}/batches"], arrays[f"{c}/batch_lengths"] = ragged(batches[country]["batches"])
        arrays[f"{c}/loss"] = np.array(batches[country]["loss"], np.float32)
        arrays[f"{c}/grad_norm"] = np.array(batches[country]["grad_norm"], np.float32)
        arrays[f"{c}/trained"] = np.array([[number[i], r] for i, r in trained[country].items()], np.float64)
        percent = [[reports[name][country][key] for key in ("start", "ours_partial")] for name in reports]
        arrays[f"{c}/percent"] = np.array(percent)

    cases = expected("filter_cases")["cases"]
    for key in ("r_chosen", "r_rejected", "tau", "p", "train_keep", "test_keep"):
        arrays[f"filter/{key}"] = np.array([case[key] for case in cases])
    for k, case in enumerate(expected("loss_cases")):
        nan = float("nan")
        for key, value in case.items():
            if isinstance(value, list):
                arrays[f"loss/{k}/{key}"] = np.array(value, np.float64)
        scalars = [case["variant"] == "inverse", case["beta"], case["center_rewards_coefficient"] or 0.0]
        arrays[f"loss/{k}/scalars"] = np.array([*scalars, case.get("expected_loss", nan)], np.float64)
    np.savez_compressed(pathlib.Path(__file__).with_name("reference.npz"), **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
