"""Planted leaks are caught, honest data are not suspected, and what stops a run can be allowed by name."""

import json
import random

import numpy as np
import pytest

from scpo_jax import baselines, guards, tokens
from scpo_jax.data import encoding, preferences, vocabulary
from scpo_jax.workdir import Workdir
from tests.run_helpers import GROUPS, World, refusal

WORDS = (
    "calm clear direct formal friendly gentle honest humble lively modest plain polite proud quick sober warm".split()
)


def honest(users=60, per_user=4, seed=0) -> list[dict]:
    """Pairs whose labels have something to do with words, no more than people agree, and nothing with form."""
    rng = random.Random(seed)
    rows = []
    for i in range(users * per_user):
        a, b = (" ".join(rng.choices(WORDS, k=rng.randint(8, 40))) + rng.choice(".!?") for _ in range(2))
        if rng.random() < 1 / (1 + 2 ** (b.count("warm") - a.count("warm"))):
            a, b = b, a
        rows.append(
            {
                "pair_id": f"pair {i}",
                "user_id": f"user {i // per_user}",
                "group": GROUPS[i // per_user % 3],
                "split": "test" if i // per_user >= 0.7 * users else "train",
                "prompt": f"question {i}",
                "chosen": a,
                "rejected": b,
            }
        )
    return rows


def of(side: str, function) -> list[dict]:
    """Honest pairs with one side changed."""
    return [row | {side: function(row[side])} for row in honest()]


def sorted_by(key) -> list[dict]:
    """Honest pairs whose labels follow a key of the responses."""
    return [
        row | dict(zip(("rejected", "chosen"), sorted((row["chosen"], row["rejected"]), key=key), strict=True))
        for row in honest()
    ]


def levels(rows: list[dict], max_length=64, tokenizer=None) -> dict[str, str]:
    """name -> level of all that is not ok."""
    texts = [text for row in rows for text in (row["prompt"], row["chosen"], row["rejected"])]
    tokenizer = tokenizer or vocabulary.make_tokenizer(texts, 300, max_length)
    keys = tokens.texts_of(rows)
    encoded = encoding.encode_for_scoring(tokenizer, *zip(*keys.values(), strict=True), max_length, "pair")
    findings, records = guards.check(rows, tokenizer, dict(zip(keys, encoded, strict=True)), "pair")
    assert tuple(finding.name for finding in findings) == guards.NAMES
    assert all(0 <= record["low"] <= record["accuracy"] <= record["high"] <= 1 for record in records.values())
    return {finding.name: finding.level for finding in findings if finding.level != "ok"}


def test_honest_data_are_not_suspected():
    for seed in range(3):
        assert levels(honest(seed=seed)) == {}


def test_a_bracket_around_every_rejected_text():
    assert levels(of("rejected", lambda text: f"[{text}]")) == {"templates": "stop", "characters": "stop"}


def test_a_list_where_a_text_should_be():
    found = levels(of("chosen", lambda text: str([{"role": "assistant", "content": text}])))
    assert found["templates"] == "stop"


def test_a_mark_on_some_texts_warns():
    rng = random.Random(1)
    found = levels(of("rejected", lambda text: f" {text}" if rng.random() < 0.2 else text))
    assert found == {"templates": "warning"}


def test_a_taste_for_marks_is_no_template():
    """Three quarters of the users like an exclamation mark: no leak."""
    rng = random.Random(2)
    rows = honest()
    for row in rows:
        row["chosen" if rng.random() < 0.75 else "rejected"] += "!!"
    assert "templates" not in levels(rows)


@pytest.mark.parametrize("spelling", ["user 0", " user 0"])
def test_a_user_in_both_splits(spelling):
    rows = honest()
    rows[-1]["user_id"] = spelling
    assert levels(rows) == {"user_in_both_splits": "stop"}


@pytest.mark.parametrize("sides", [("chosen", "rejected"), ("rejected", "chosen")])
def test_a_pair_in_both_splits(sides):
    rows = honest()
    rows[-1] |= {"prompt": rows[0]["prompt"], "chosen": rows[0][sides[0]], "rejected": rows[0][sides[1]]}
    assert levels(rows) == {"pair_in_both_splits": "warning", "text_in_both_splits": "warning"}
    for test, train in zip(rows[-4:], rows[:4], strict=True):
        test |= {"prompt": train["prompt"], "chosen": train[sides[0]], "rejected": train[sides[1]]}
    assert levels(rows)["pair_in_both_splits"] == "stop"


def test_a_text_in_both_splits_warns():
    rows = honest()
    rows[-1] |= {"prompt": rows[0]["prompt"], "chosen": rows[0]["rejected"]}
    assert levels(rows) == {"text_in_both_splits": "warning"}


def test_labels_that_length_decides():
    assert levels(sorted_by(len))["length"] == "stop"
    middle = baselines.records(sorted_by(lambda text: abs(len(text) - 120)))["length"]
    assert middle["accuracy"] > 0.8 and middle["train_accuracy"] > 0.8


def test_separators_written_in_texts():
    everywhere = [row | {"prompt": row["prompt"] + " [SEP]"} for row in honest()]
    assert levels(everywhere) == {"special_tokens": "stop"}
    rows = honest()
    rows[0]["chosen"] += " [SEP]"
    assert levels(rows) == {"special_tokens": "warning"}


@pytest.mark.parametrize("template", ["[CLS]:0 $A:0 [SEP]:0 [SEP]:0 $B:1 [SEP]:1", "[CLS]:0 $A:0 $B:1"])
def test_a_tokenizer_that_doubles_or_lacks_the_separator(template):
    from tokenizers.processors import TemplateProcessing

    rows = honest()
    tokenizer = vocabulary.make_tokenizer([row["prompt"] for row in rows], 200, 64)
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", template, ids)
    assert levels(rows, tokenizer=tokenizer) == {"special_tokens": "stop"}


def test_a_pad_token_that_ends_texts():
    rows = honest()
    tokenizer = vocabulary.make_tokenizer([row["prompt"] for row in rows], 200, 64)
    tokenizer.pad_token = tokenizer.sep_token
    assert levels(rows, tokenizer=tokenizer) == {"pad_token": "warning"}


def test_truncation_of_one_side():
    found = levels(of("chosen", lambda text: text + " and so on" * 20))
    assert found["truncation"] == "stop"
    rows = honest()
    for row in rows[::2]:  # the words that are liked make the chosen ones longer
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    assert levels(rows, max_length=32) == {"truncation": "warning"}


def test_accuracy_above_what_prism_allows():
    def record(accuracy, n):
        return {"all": {"accuracy": accuracy, "n": n}}

    fair = {"Chile": record(0.8, 20), "Israel": record(0.6, 80), "nobody": record(None, 0)}
    assert guards.prism_accuracy({"global": fair}).level == "ok"
    found = guards.prism_accuracy({"global": fair, "scpo": fair | {"Israel": record(0.7, 80)}})
    assert (found.level, found.count, found.of) == ("warning", 72, 100) and "scpo" in found.what


def test_a_later_finding_takes_the_place_of_an_earlier_one(tmp_path, capsys):
    work = Workdir(tmp_path)
    for right in (60, 80, 65):
        guards.add(work, guards.prism_accuracy({"scpo": {"Chile": {"all": {"accuracy": right / 100, "n": 100}}}}))
    said = "guard prism_accuracy: 80 of 100 test pairs are right by scpo: on PRISM look for a leak above 70 %\n"
    assert capsys.readouterr().err == said
    found = json.loads(work.guards.read_text())["findings"]
    assert [(f["name"], f["level"], f["count"]) for f in found] == [("prism_accuracy", "ok", 65)]


def leaky(folder) -> World:
    """A run in whose data a test user has the pairs of a training user."""
    rows = [row | {"group": GROUPS[0]} for row in honest()]
    train, test = preferences.split_units(list(dict.fromkeys(row["user_id"] for row in rows)), 0.3, 0)
    copied, planted = ([row for row in rows if row["user_id"] == unit] for unit in (train[0], test[0]))
    for row, copy in zip(planted, copied, strict=True):
        row |= {key: copy[key] for key in ("prompt", "chosen", "rejected")}
    return World(folder, [{key: value for key, value in row.items() if key != "split"} for row in rows], groups=())


def test_a_run_stops_unless_the_guard_is_allowed(tmp_path, capsys):
    world = leaky(tmp_path)
    flags = ("--config.global_rm.groups=", "--config.data.split_seed=0", "--stages=prepare")
    arguments = ("run", f"--config={world.config}", f"--workdir={world.workdir}", *flags)
    said = refusal(capsys, *arguments)
    assert "guard pair_in_both_splits: 4 of" in said and "--config.allow=pair_in_both_splits" in said
    found = json.loads((world.workdir / "reports" / "guards.json").read_text())
    assert {f["level"] for f in found["findings"] if f["name"] == "pair_in_both_splits"} == {"stop"}
    assert set(found["baselines"]) == {"length", "characters"} and not (world.workdir / "data").exists()
    assert "config.allow names 'pairs'; guards are user_in_both_splits," in refusal(
        capsys, *arguments, "--config.allow=pairs"
    )
    assert "guard pair_in_both_splits" in refusal(capsys, *arguments, "--config.allow=templates")
    assert world.run(*flags, "--config.allow=templates,pair_in_both_splits") == 0
    assert "guard pair_in_both_splits: 4 of" in capsys.readouterr().err
    found = json.loads((world.workdir / "reports" / "guards.json").read_text())
    assert {f["level"] for f in found["findings"]} == {"ok", "allowed", "warning"}
    assert np.isfinite(found["baselines"]["length"]["accuracy"])


def test_a_letter_that_is_always_on_one_side_decides():
    rows = [row | {"chosen": "a", "rejected": "b"} for row in honest()]
    records = baselines.records(rows)
    assert records["characters"]["accuracy"] == records["characters"]["train_accuracy"] == 1
    assert records["length"]["ties"] == records["length"]["n"] and records["length"]["accuracy"] == 0


def test_without_a_test_split_nothing_is_predicted():
    rows = [row | {"split": "train"} for row in honest()]
    record = baselines.records(rows)["length"]
    assert record["n"] == 0 and record["accuracy"] is record["train_accuracy"] is None
    assert guards.predicted("length", record).level == "ok"
