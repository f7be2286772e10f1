"""GlobalOpinionQA as a test of any model: divergence, temperature, and the file that is written."""

import csv
import json

import numpy as np
import pytest
import scipy.spatial.distance

from scpo_jax import opinions
from scpo_jax.data import global_opinions
from tests.run_helpers import GROUPS, refusal, scpo


def test_divergence_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p, q = rng.dirichlet(np.full(5, 0.3)), rng.dirichlet(np.full(5, 0.3))
        p[0] = 0
        p /= p.sum()
        expected = scipy.spatial.distance.jensenshannon(p, q, base=2)
        assert np.sqrt(opinions.divergence(p, q)) == pytest.approx(expected, abs=1e-7)
    assert opinions.divergence(np.array([1.0, 0]), np.array([0, 1.0])) == 1
    assert opinions.divergence(p, p) == 0


def test_the_temperature_comes_back():
    rng = np.random.default_rng(1)
    rewards = [rng.normal(size=rng.integers(2, 6)) for _ in range(50)]
    for inverse in (0.2, 1.0, 3.0):
        shares = [opinions.softmax(r, inverse) for r in rewards]
        assert opinions.fit_inverse_temperature(rewards, shares) == pytest.approx(inverse, rel=1e-6)
    against = [opinions.softmax(r, -1.0) for r in rewards]
    assert opinions.fit_inverse_temperature(rewards, against) == 0
    assert opinions.fit_inverse_temperature([np.zeros(3)], [np.array([0.5, 0.5, 0])]) == 0


def test_similarities_by_hand():
    cells = [
        global_opinions.Cell("Chile", f"question {i}", f"b{i}", ["yes", "no"], np.array(shares))
        for i, shares in enumerate([[1.0, 0.0], [0.5, 0.5]])
    ]
    found = opinions.similarities(cells, [np.array([0.0, 0.0])] * 2, 0.0)
    first = 1 - (np.log2(1 / 0.75) + 0.5 * np.log2(0.5 / 0.75) + 0.5 * np.log2(0.5 / 0.25)) / 2
    assert found["similarity_divergence"]["mean"] == pytest.approx((first + 1) / 2)
    assert found["similarity_distance"]["mean"] == pytest.approx((1 - np.sqrt(1 - first) + 1) / 2)
    assert found["similarity_distance"]["low"] < found["similarity_distance"]["high"] == 1


def test_a_country_without_test_questions_has_no_figures():
    assert opinions.accuracy([], {})["accuracy"] is None
    record = {"all": opinions.accuracy([], {}), **opinions.similarities([], [], 1.0)}
    assert set(opinions.macro([record]).values()) == {None}


@pytest.fixture
def survey(tmp_path):
    """Forty questions to two countries: good answers here, warm ones there."""
    rows = []
    for i in range(40):
        shares = {GROUPS[1]: [0.2, 0.5, 0.2, 0.1], "Peru": [0.6, 0.2, 0.1, 0.1]}
        options = [f"good answer {i}", f"warm reply {i}", "neither", "DK/Refused"]
        rows.append([f"{i} question about it", f"defaultdict(<class 'list'>, {shares})", str(options), "GAS"])
    with open(tmp_path / "opinions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "selections", "options", "source"), *rows])
    return tmp_path / "opinions.csv"


def test_cells_have_the_options_of_substance(survey):
    cells = global_opinions.cells(survey)
    assert len(cells) == 80 and cells[0].country == GROUPS[1] and len(cells[0].options) == 3
    np.testing.assert_allclose(cells[0].shares, [2 / 9, 5 / 9, 2 / 9])


def test_a_workdir(finished, survey, tmp_path, capsys):
    output = tmp_path / "opinions.json"
    flags = (f"--model={finished.workdir}", f"--data={survey}", f"--output={output}", "--source=global_opinions")
    assert scpo("evaluate", *flags) == 0
    report = json.loads(output.read_text())
    assert report["groups"] == [GROUPS[1]] and report["batteries"] == {"train": 34, "test": 6}
    assert list(report["methods"]) == ["uniform", "global", "scpo"] == list(report["macro"])
    own = {method: report["methods"][method][GROUPS[1]] for method in report["methods"]}
    assert own["scpo"]["all"]["n"] == own["global"]["all"]["n"] == 12 and "all" not in own["uniform"]
    assert own["scpo"]["similarity_distance"]["n"] == 6
    # the group's RM was trained to like warm replies, the global one good answers
    assert own["scpo"]["all"]["accuracy"] > own["global"]["all"]["accuracy"]
    assert own["scpo"]["similarity_divergence"]["mean"] > own["uniform"]["similarity_divergence"]["mean"]
    assert "scpo, mean over 1 countries: accuracy" in capsys.readouterr().err
    assert scpo("evaluate", *flags, "--groups=Peru", "--method=global") == 0
    assert list(json.loads(output.read_text())["methods"]) == ["uniform", "global"]


def test_mistakes(finished, survey, tmp_path, capsys):
    flags = ("evaluate", f"--model={finished.workdir}", f"--data={survey}", f"--output={tmp_path / 'out.json'}")
    assert 'no group "Atlantis"' in refusal(capsys, *flags, "--source=global_opinions", "--groups=Atlantis")
    assert "--groups is for --source=global_opinions" in refusal(capsys, *flags, "--groups=Peru")
    assert not (tmp_path / "out.json").exists()
