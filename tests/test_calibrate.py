"""tau and beta per group: what is chosen, when nothing is, and that test users have no say."""

import json

import numpy as np

from scpo_jax import calibrate, score
from scpo_jax.data import preferences
from scpo_jax.data.encoding import Text
from tests.run_helpers import GROUPS


def world(extreme: float, users=60, per_user=8, seed=0):
    """Linear rewards: the global RM is sure and right but for one direction, and some users reverse their labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(users * per_user, 6))
    base = x @ [2.0, 2.0, 0, 0, 0, 0]
    utility = x @ [2.0, 2.0, 2.0, 0, 0, 0] * np.repeat(np.where(rng.random(users) < extreme, -1, 1), per_user)
    sign = np.where(rng.random(len(x)) < 1 / (1 + np.exp(-utility)), 1, -1)
    refs = (sign * base).astype(np.float32), np.zeros(len(x), np.float32)
    return sign[:, None] * x, refs, [f"user {i // per_user}" for i in range(len(x))]


def test_the_best_point_of_the_grid_is_chosen():
    found = calibrate.choose(*world(0.3), 0.7, 1.1, 0)
    assert len(found["grid"]) == 36 and found["users"] == 60 and found["pairs"] == 480
    accuracies = {(tau, beta): accuracy for tau, beta, accuracy in found["grid"]}
    assert found["accuracy"] == accuracies[found["tau"], found["beta"]] == max(accuracies.values())
    assert found["before"] == accuracies[0.7, 1.1] < found["accuracy"]
    # the filter alone shows reversed labels only: the weight has to hold them down
    assert accuracies[0.5, 1e6] < 0.5 < found["before"]


def test_ties_go_to_the_values_given():
    x, refs, users = world(0.3)
    for given in ((0.7, 1.1), (0.75, 3.0)):
        found = calibrate.choose(0 * x, refs, users, *given, 0)
        assert (found["tau"], found["beta"]) == given and found["accuracy"] == found["before"]


def test_few_users_decide_nothing():
    x, refs, users = world(0.3, users=4)
    found = calibrate.choose(x, refs, users, 0.7, 1.1, 0)
    assert (found["tau"], found["beta"], found["accuracy"], found["grid"]) == (0.7, 1.1, None, [])
    assert "4 users are too few" in calibrate.line(found)


def test_a_head_is_judged_on_users_it_was_not_trained_on():
    """Labels that only the user decides: no head can know a new user's."""
    rng = np.random.default_rng(1)
    x = np.repeat(np.eye(40), 10, axis=0) * rng.choice([-1, 1], (40, 1)).repeat(10, 0)
    x += rng.normal(0, 0.01, x.shape)
    users, folds = [str(i // 10) for i in range(400)], np.arange(400) // 10 % 5
    refs = np.full(400, -1e-3, np.float32), np.zeros(400, np.float32)
    mixed = np.arange(400) % 5
    assert calibrate.held_out_accuracy(x, refs, folds, 1.0, 1e6) < 0.9
    assert calibrate.held_out_accuracy(x, refs, mixed, 1.0, 1e6) == 1
    assert calibrate.choose(x, refs, users, 0.7, 1.1, 0)["accuracy"] < 0.9


def test_differences_of_counts_of_tokens():
    def text(*ids):
        return Text(np.array(ids, np.int32), np.zeros(len(ids), np.int32), 0)

    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "b", "rejected": "c"}]
    encoded = {"a": text(1, 7, 7, 2), "b": text(1, 8, 2), "c": text(1, 2)}
    differences = calibrate.token_differences({score.text_key("p", key): t for key, t in encoded.items()}, rows)
    columns = sorted(differences.T.tolist())
    expected = sorted([[0, 0], [0, 0], [np.log(3), 0], [-np.log(2), np.log(2)]])
    np.testing.assert_allclose(columns, expected, atol=1e-6)


def test_principal_directions_do_not_know_the_labels():
    rng = np.random.default_rng(0)
    x, sign = rng.normal(size=(50, 5)) * [3, 1, 1, 1, 0], rng.choice([-1, 1], (50, 1))
    coordinates = calibrate.principal(x)
    np.testing.assert_allclose(coordinates.T @ coordinates / 50, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(calibrate.principal(sign * x), sign * coordinates, atol=1e-9)


def test_a_run(copy, capsys):
    flags = ("--stages=select", "--force", "--config.scpo.calibrate", "--config.per_group=(('日本','tau',.65),)")
    assert copy.run(*flags) == 0
    assert f"calibrate {GROUPS[2]}: tau " in capsys.readouterr().err
    found = json.loads((copy.workdir / "reports" / "calibration.json").read_text())
    assert set(found) == set(GROUPS)
    rows = preferences.read_table(copy.workdir / "selection.parquet").to_pylist()
    for row in rows:
        assert row["beta"] == found[row["group"]]["beta"]
        assert row["tau"] == (0.65 if row["group"] == "日本" else found[row["group"]]["tau"])
        if row["split"] == "train":
            assert row["keep"] == (row["p_global"] < row["tau"])
    counts = {group: sum(r["group"] == group and r["split"] == "train" for r in rows) for group in GROUPS}
    assert {group: record["pairs"] for group, record in found.items()} == counts
    assert copy.run("--stages=select", "--force") == 0
    assert not (copy.workdir / "reports" / "calibration.json").exists()
