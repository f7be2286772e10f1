"""What is said of a policy: changes and win rates by hand, gold beside them, wording, samples, curves; its section."""

import json

import numpy as np
import pytest

from scpo_jax import evaluate_policy, gold, page, policy_page, policy_records
from scpo_jax.data import simulated
from scpo_jax.policy import Samples
from scpo_jax.policy_prompts import Task
from scpo_jax.workdir import Workdir
from tests.run_helpers import Reader, check_page
from tests.test_gold import DIRECT, HINTS, LONG, NEUTRAL, RELEVANT, TRUTH

COUNTS = np.ones((3, 4), np.float32)


def test_scores_by_hand():
    found = policy_records.judged(np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 2.5, 9]), COUNTS)
    assert found["before"]["mean"] == 2.5 and found["after"]["mean"] == 3.875
    assert found["change"] == {"mean": 1.375, "low": 1.375, "high": 1.375}
    assert found["win_rate"]["mean"] == 0.625  # two of four, and a tie
    assert found["std"] == pytest.approx(np.sqrt(1.25))


def test_distinct_words():
    texts = ["a b a", "a b", ""]
    assert policy_records.distinct(texts, 1) == 2 / 5
    assert policy_records.distinct(texts, 2) == 2 / 3  # a b, b a; no pair goes from one text to the next
    assert policy_records.distinct(["", "a"], 2) == 0
    found = policy_records.wording(texts, np.array([4, 2, 1]), np.array([False, True, True]))
    assert found["length"] == pytest.approx(7 / 3) and found["end_rate"] == pytest.approx(2 / 3)


def test_a_curve_has_what_was_logged():
    rows = [{"step": s, "objective/kl": kl, "objective/scores": v} for s, kl, v in ((1, 0.0, 0.0), (2, 2.0, 3.0))]
    curve = policy_records.read_curve(rows, evaluate_policy.CURVE)
    assert curve[1] == {"step": 2, "kl": 2.0, "score": 3.0}


def samples(texts, kl):
    lengths = np.array([len(text.split()) for text in texts])
    return Samples(texts, np.zeros((4, 9), np.int32), lengths, lengths > 0, np.array(kl, np.float32))


BEFORE = [NEUTRAL, f"{HINTS} {LONG}", RELEVANT, "garbage"]
AFTER = [f"{DIRECT} {RELEVANT}", f"{DIRECT} {DIRECT}", "", NEUTRAL]


@pytest.fixture(scope="module")
def record():
    """The report of a policy that says more directly what is relevant, by judges who count words."""
    tasks = [Task(prompt, f"[Chile] {prompt}", "Chile") for prompt in ("x?", "y?", "x?", "z?")]
    answers = evaluate_policy.Answers(tasks, samples(BEFORE, np.zeros(4)), samples(AFTER, [1.0, 2.0, 3.0, 4.0]))
    judges = {
        "global": lambda prompts, texts: -np.array([float(len(text)) for text in texts]),
        "Chile": lambda prompts, texts: np.array([float(text.count(" now.") + (p == "x?")) for p, text in
                                                  zip(prompts, texts, strict=True)]),
    }  # fmt: skip
    return evaluate_policy.record_of(answers, judges, "Chile", "Chile", TRUTH)


def test_the_report_of_a_policy_by_hand(record):
    assert (record["score_before"], record["score_after"], record["kl"]) == (0.5, 1.25, 2.5)
    utilities = [0, 1.16 - 1.21, 1.15]
    worst = np.percentile(utilities, 5)
    before, after = np.array([*utilities, worst]), [1.21 + 1.15, 1.21, worst, 0]
    assert record["gold_before"] == pytest.approx(np.mean(before)) and record["gold_std"] == pytest.approx(before.std())
    assert (
        record["gold_after"] == pytest.approx(np.mean(after)) == pytest.approx(record["gold"]["Chile"]["after"]["mean"])
    )
    assert record["in_grammar"] == {"before": 0.75, "after": 0.75} and record["prompts"] == 3
    assert record["judges"]["Chile"]["win_rate"]["mean"] == 0.75  # two wins, two ties
    assert set(record["gold"]) == {gold.UNIVERSAL, "Chile", "Canada"} and record["trained_against"] == "Chile"
    shorter = record["gold_without_length"]["Chile"]["before"]["mean"]
    assert shorter == pytest.approx(np.mean([0, -1.21, 1.15, np.percentile([0, -1.21, 1.15], 5)]))
    assert [row["prompt"] for row in record["samples"]] == ["x?", "y?", "z?"]
    assert record["samples"][2] | {"gold_before": 0} == {
        "prompt": "z?", "before": "garbage", "after": NEUTRAL, "score_before": 0, "score_after": 0,
        "gold_before": 0, "gold_after": 0,
    }  # fmt: skip


def test_without_a_truth_or_a_response_of_the_grammar_there_is_no_gold():
    tasks = [Task(prompt, prompt, "Chile") for prompt in "abcd"]
    garbage = samples(["garbage"] * 4, np.zeros(4))
    answers = evaluate_policy.Answers(tasks, garbage, samples(AFTER, np.ones(4)))
    judges = {"global": lambda prompts, texts: np.zeros(len(texts), np.float32)}
    for truth in (None, TRUTH):
        found = evaluate_policy.record_of(answers, judges, "global", "Chile", truth)
        assert not [key for key in found if key.startswith("gold_") and key != "gold_without_length"]
        assert not found.get("gold") and "gold_before" not in found["samples"][0]
        json.dumps(found, allow_nan=False)


def test_the_page_has_policies(copy, record):
    curve = [{"step": s, "kl": 0.2 * s, "score": 0.1 * s, "gold": 0.05 * s} for s in range(1, 20)]
    plain = {key: value for key, value in record.items() if not key.startswith(("gold", "in_grammar"))}
    report = {
        "Chile": record | {"curve": curve, "kl_budget": 10.0, "steps": 19},
        "日本": plain | {"curve": [], "kl_budget": None, "steps": 0},
    }
    path = copy.workdir / "reports" / "policy.json"
    path.write_text(json.dumps(report, allow_nan=False))
    page.write(Workdir(copy.workdir))
    found = Reader((copy.workdir / "report.html").read_text(encoding="utf-8"))
    check_page(found)
    assert (copy.workdir / "figures" / "policy.png").read_bytes()[:4] == b"\x89PNG"
    assert "#policy" in {own["href"] for own in found.all("a") if "href" in own}
    gain = (record["gold_after"] - record["gold_before"]) / record["gold_std"]
    assert f"by the truth Chile gains {gain:+.2f}" in found.text and f"{DIRECT} {RELEVANT}" in found.text
    assert "its responses win 50.0" in found.text  # by the global RM
    assert policy_page.picture({"日本": report["日本"]}) is None and policy_page.section({}) == {}
    assert set(simulated.DELTA) > {"Chile"}
