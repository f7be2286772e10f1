"""Profiles fitted for a community: on planted mixtures, on none, and through `scpo steer`."""

import json

import numpy as np
import pytest
import scipy.optimize

from scpo_jax import community
from tests.run_helpers import GROUPS, pairs, read_rows, refusal, scpo, write_rows


def planted(strengths, n=256, seed=0, noise=1.0):
    """(base, features, users) of pairs whose labels follow base + features @ strengths with logistic noise."""
    rng = np.random.default_rng(seed)
    base, features = rng.normal(size=n), rng.normal(size=(n, len(strengths)))
    utility = base + features @ np.array(strengths) + noise * rng.logistic(size=n)
    sign = np.sign(utility)
    return sign * base, sign[:, None] * features, [f"user {i // 2}" for i in range(n)]


def test_a_planted_mixture_is_found():
    truth = np.array([0.8, 0.2, 0.6])
    found = community.fit(*planted(truth, 2048))
    np.testing.assert_allclose(found.strengths, truth, atol=0.15)
    low, high = np.percentile(community.resampled(found, *planted(truth, 2048)), [2.5, 97.5], axis=0)
    assert (low < found.strengths).all() and (found.strengths < high).all() and (high - low < 0.6).all()


def test_strengths_are_not_below_zero():
    found = community.fit(*planted([0.8, -0.6], 2048)).strengths
    assert found[1] == 0 and 0.6 < found[0] < 1


def test_a_blend_is_fitted_where_it_is_used():
    """Margins that are not linear in the strengths: what is found is the minimum over the blends themselves."""
    base, features, users = planted([0.75, 0.36], 1024, noise=0.3)
    start, groups = {"s": np.zeros(2)}, {"A": {"s": np.array([1.0, 0.0])}, "B": {"s": np.array([0.0, 1.0])}}

    def margins(params):
        s = np.array(params["s"], float)
        return base + features @ (2 * s - s**2)  # the group's RM at 1, three quarters of the way there at 0.5

    found = community.fit_blend(start, groups.__getitem__, list(groups), margins, users)
    penalty, scale = found.fit.penalty, found.fit.scale

    def loss(s):
        return community.loss(scale * margins({"s": s})).sum() + penalty / 2 * np.square(s).sum()

    best = scipy.optimize.minimize(loss, [0.3, 0.3]).x
    np.testing.assert_allclose(found.fit.strengths, best, atol=0.05)
    assert np.abs(found.base + found.features @ best - margins({"s": best})).mean() < 0.1
    assert np.abs(community.fit(base, features, users).strengths - best).max() > 0.15
    nothing = community.fit_blend(start, groups.__getitem__, list(groups), lambda params: base, users)
    assert not nothing.fit.strengths.any()


def test_few_pairs_are_drawn_towards_the_global_rm():
    sizes = [
        np.mean([np.linalg.norm(community.fit(*planted([0.8, 0.0, 0.6], n, seed)).strengths) for seed in range(5)])
        for n in (8, 32, 512)
    ]
    assert sizes[0] < 0.4 and sizes[0] < sizes[1] < sizes[2] and 0.7 < sizes[2] < 1.2


def test_what_the_global_rm_explains_gives_no_profile():
    found = [community.fit(*planted([0.0, 0.0], 64, seed)) for seed in range(10)]
    nothing = [fitted for fitted in found if fitted.penalty == np.inf]
    assert len(nothing) >= 5 and max(np.abs(fitted.strengths).max() for fitted in found) < 0.4
    assert not any(fitted.strengths.any() for fitted in nothing)
    assert not community.resampled(nothing[0], *planted([0.0, 0.0], 64)).any()


def test_the_strongest_penalty_within_a_quarter_of_a_standard_error():
    best, wave = np.zeros(100), np.resize([1.0, -1.0], 100)  # standard error of the difference 0.1
    losses = {np.inf: wave + 0.03, 50.0: wave + 0.02, 10.0: best}
    assert community.choose(losses) == 50 and community.choose(losses | {np.inf: best - 0.001}) == np.inf
    assert community.choose({np.inf: wave + 0.03, 10.0: best}) == 10


def test_the_scale_of_rewards_changes_nothing():
    base, features, users = planted([0.8, 0.6], 64)
    expected = community.fit(base, features, users)
    found = community.fit(0.01 * base, 0.01 * features, users)
    np.testing.assert_allclose(found.strengths, expected.strengths, rtol=1e-6)
    assert found.penalty == expected.penalty < np.inf


def test_users_are_left_out_whole():
    """A user's pairs all carry the same label noise: whoever leaves out single pairs believes it."""
    rng = np.random.default_rng(0)
    base, features, users = np.zeros(60), np.repeat(rng.normal(size=(6, 20)), 10, axis=0), np.repeat(np.arange(6), 10)
    assert (community.left_out(base, features, np.arange(60), 0.5) > 0).all()
    assert (community.left_out(base, features, community.folds_of(users), 0.5) > 0).mean() < 0.9
    folds = community.folds_of(np.repeat(np.arange(100), 3))
    assert len(np.unique(folds)) == community.FOLDS and (folds.reshape(100, 3) == folds[::3, None]).all()
    assert len(np.unique(community.folds_of(np.arange(20)))) == 20


def steer(finished, rows, folder, *flags) -> dict:
    source, output = write_rows(folder / "few.jsonl", rows), folder / "new" / "profile.json"
    assert scpo("steer", f"--workdir={finished.workdir}", f"--pairs={source}", f"--output={output}", *flags) == 0
    return json.loads(output.read_text())


@pytest.fixture
def few(finished, tmp_path):
    """Pairs labelled by the mean of two groups' RMs."""
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in pairs(users=6)]
    source = write_rows(tmp_path / "unlabelled.jsonl", rows)
    margins = []
    for slug in ("x", "cote-d-ivoire"):
        flags = (f"--model={finished.workdir / 'checkpoints' / 'scpo' / slug}", f"--input={source}")
        assert scpo("score", *flags, f"--output={tmp_path / slug}") == 0
        margins.append([row["score_chosen"] - row["score_rejected"] for row in read_rows(tmp_path / slug)])
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    return [
        row if margin > 0 else {k: row[swapped.get(k, k)] for k in row}
        for row, margin in zip(rows, np.mean(margins, axis=0), strict=True)
    ]


def test_steer(finished, few, tmp_path, capsys):
    report = steer(finished, few, tmp_path)
    assert report["method"] == "scpo" and report["pairs"] == len(few) and report["users"] < len(few)
    assert set(report["strengths"]) == set(GROUPS) and report["profile"].keys() <= set(GROUPS)
    for group, strength in report["profile"].items():
        own = report["strengths"][group]
        assert own["strength"] == pytest.approx(strength, abs=1e-4) and own["std"] > 0 and own["low"] <= own["high"]
    found = report["left_out"]
    assert found["difference"] == pytest.approx(found["profile"] - found["global"])
    assert found["low"] <= found["difference"] <= found["high"] and found["profile"] > found["global"]
    assert "accuracy on left-out users" in capsys.readouterr().err
    flags = (f"--model={finished.workdir}", f"--data={tmp_path / 'few.jsonl'}", f"--output={tmp_path / 'evaluated'}")
    assert scpo("evaluate", *flags, f"--profile={tmp_path / 'new' / 'profile.json'}") == 0
    methods = json.loads((tmp_path / "evaluated").read_text())["methods"]
    assert methods["scpo"]["all"]["all"]["accuracy"] > methods["global"]["all"]["all"]["accuracy"]
    assert steer(finished, few, tmp_path, "--method=full")["method"] == "full"


def test_steer_refuses(finished, few, tmp_path, capsys):
    output = tmp_path / "profile.json"
    for message, rows, *flags in (
        ("has 7 usable pairs of 7 users", [row | {"prompt": f"{i}"} for i, row in enumerate(few[:7])]),
        ("12 usable pairs of 3 users", [row | {"user_id": f"{i % 3}"} for i, row in enumerate(few[:12])]),
        ("at least 8 of 4", few[:3]),
        (":1: missing field 'rejected'", [{"prompt": "a", "chosen": "b"}]),
        ("here are none", few, "--method=global"),
        ("has no method 'dpo'", few, "--method=dpo"),
        ("is not the workdir of a run", few, f"--workdir={tmp_path}"),
        ("--pairs=... is missing", few, "--pairs="),
        ("unknown flag model; it is a flag of score", few, "--model=x"),
    ):
        source = write_rows(tmp_path / "few.jsonl", rows)
        arguments = (f"--workdir={finished.workdir}", f"--pairs={source}", f"--output={output}", *flags)
        assert message in refusal(capsys, "steer", *arguments) and not output.exists()
