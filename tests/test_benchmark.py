"""`scpo benchmark`: what cells train on, what a small benchmark leaves, and that nothing finished is done again."""

import json
import os

import numpy as np
import pytest

from scpo_jax import benchmark, benchmark_cells, configuration, page, train_groups
from scpo_jax.data import preferences
from scpo_jax.workdir import Workdir
from tests.run_helpers import GROUPS, Reader, World, check_page, refusal, scpo, snapshot

METHODS = ("full", "scpo", "uncertain", "propose", "random_annotation")
TAU = "--config.scpo.tau=0.5"  # scpo then keeps about half of these pairs, and uncertain none
FLAGS = (TAU, "--fractions=0.5,1", "--seeds=0,1", f"--methods={','.join(METHODS)}")
NAMES = ("full", "scpo", "uncertain", "propose", "random_annotation", "random_subset")


def run(world, *flags) -> int:
    return scpo("benchmark", f"--config={world.config}", f"--workdir={world.workdir}", *(flags or FLAGS))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("benchmark"))
    assert run(world) == 0
    return world


def cells(world, seed: int = 0) -> dict:
    folder = world.workdir / "benchmark" / f"seed-{seed}" / "cells"
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def report_of(world) -> dict:
    return json.loads((world.workdir / "reports" / "benchmark.json").read_text())


def test_small_shares_are_parts_of_larger_ones():
    users = [f"u{i}" for i in range(37)]
    found = benchmark_cells.nested(users, (0.01, 0.1, 0.5, 1.0), np.random.default_rng(0))
    assert [len(own) for own in found.values()] == [1, 4, 19, 37]
    assert found[0.01] < found[0.1] < found[0.5] < found[1.0] == set(users)
    other = benchmark_cells.nested(users, (0.5,), np.random.default_rng(1))
    assert other[0.5] != found[0.5] == benchmark_cells.nested(users, (0.5,), np.random.default_rng(0))[0.5]


def test_proposals_are_nested_and_spend_the_budget():
    differences, prompts = np.arange(12.0), ["one prompt"] * 8 + [f"prompt {i}" for i in range(4)]
    first, second, every = benchmark_cells.proposed(differences, prompts, (4, 7, 12))
    assert first == [0, 1, 8, 9]  # at most two of a prompt while there are others
    assert second[:4] == first and len(second) == len(set(second)) == 7
    assert sorted(every) == list(range(12))


def rows_of(users: int, per_user: int = 4) -> tuple[list[dict], dict[str, dict]]:
    rng, rows, selection = np.random.default_rng(0), [], {}
    for i in range(users * per_user):
        rows.append({"pair_id": f"p{i}", "user_id": f"u{i // per_user}", "prompt": f"question {i}"})
        margin = float(rng.normal())
        selection[f"p{i}"] = {"ref_chosen": margin, "ref_rejected": 0.0, "p_global": 1 / (1 + np.exp(-margin))}
        selection[f"p{i}"] |= {
            "keep": margin < 0.85,
            "uncertain": abs(margin) < 0.85,
            "trim": margin > -2.2,
            "weight": 1,
        }
    return rows, selection


@pytest.mark.parametrize("eval_every", [0, 2])
def test_what_cells_learn_from_and_how_many_labels_that_takes(eval_every):
    config = configuration.base.get_config()
    config.train.eval_every, config.train.validation_size = eval_every, 0.25
    rows, selection = rows_of(40)
    methods = ("full", "weight_only", "scpo", "trim", "uncertain", "random_subset", "propose", "random_annotation")
    shares = benchmark_cells.shares_of(config, methods, (0.25, 1.0), "A", rows, selection)
    ids = {key: {r["pair_id"] for r in own.material.rows + own.material.held_out} for key, own in shares.items()}
    for method in methods:
        assert len(ids[method, 0.25]) < len(ids[method, 1.0]) <= len(rows)
        assert bool(shares[method, 1.0].material.held_out) == bool(eval_every)
    for method in ("full", "weight_only", "scpo", "trim"):
        assert [shares[method, f].annotated for f in (0.25, 1.0)] == [40, 160]  # their users' labels, kept or not
        assert ids[method, 0.25] <= ids["full", 0.25]
    for method in ("uncertain", "random_subset", "propose", "random_annotation"):
        assert [shares[method, f].annotated for f in (0.25, 1.0)] == [len(ids[method, f]) for f in (0.25, 1.0)]
    assert len(ids["scpo", 0.25]) == len(ids["random_subset", 0.25]) < 40 or eval_every
    assert len(ids["propose", 0.25]) == len(ids["random_annotation", 0.25]) == 40
    assert ids["propose", 1.0] == ids["random_annotation", 1.0] == ids["full", 1.0]
    sure = {name: np.mean([abs(selection[i]["ref_chosen"]) for i in ids[name, 0.25]]) for name in ("propose", "full")}
    assert sure["propose"] < 0.5 * sure["full"]
    users = {name: len({i["user_id"] for i in shares[name, 0.25].material.rows}) for name in ("propose", "full")}
    assert users["full"] <= 10 < users["propose"]


def test_every_cell_leaves_a_file(world):
    wanted = {f"{rule}-{name}-{share}" for rule in ("steps", "epochs") for name in NAMES for share in ("0.5", "1")}
    for seed in (0, 1):
        found = cells(world, seed)
        assert found.keys() == wanted
        table = preferences.read_table(world.workdir / "benchmark" / f"seed-{seed}" / "data" / "pairs.parquet")
        rows = [row for row in table.to_pylist() if row["split"] == "test"]
        for own in found.values():
            assert own["correct"].keys() == own["counts"].keys() == set(GROUPS)
            for group, marks in own["correct"].items():
                assert set(marks) <= {"0", "1"} and len(marks) == sum(row["group"] == group for row in rows)


def test_budgets_of_the_optimiser(world):
    found = cells(world)
    for name, own in found.items():
        full = found["steps-full-1"]["counts"]
        for group, counts in own["counts"].items():
            share = counts["trained"] / full[group]["trained"]
            expected = 6 if name.startswith("steps") else max(round(6 * share), 1)
            assert counts["steps"] == (expected if counts["trained"] else 0)
    assert found["epochs-full-0.5"]["counts"][GROUPS[0]]["steps"] < 6


def test_a_group_without_a_pair_to_train_on_keeps_the_global_rm(world):
    place = Workdir(world.workdir / "benchmark" / "seed-0")
    rows = preferences.read_table(place.selection).to_pylist()
    for group in GROUPS:
        own = [row for row in rows if row["group"] == group and row["split"] == "test"]
        marks = "".join("01"[row["ref_chosen"] > row["ref_rejected"]] for row in own)
        assert cells(world)["steps-uncertain-1"]["correct"][group] == marks
        assert cells(world)["steps-uncertain-1"]["counts"][group] == {"annotated": 0, "trained": 0, "steps": 0}


def test_the_same_trainings_are_done_once(world):
    found = cells(world)
    same = [f"{rule}-{name}-1" for rule in ("steps", "epochs") for name in ("full", "propose", "random_annotation")]
    assert len({found[name]["fingerprint"] for name in same}) == 1
    assert sum(found[name]["seconds"] > 0 for name in same) == 1
    assert all(found[name]["correct"] == found[same[0]]["correct"] for name in same)


def test_the_report(world):
    report = report_of(world)
    assert report["seeds"] == [0, 1] and report["fractions"] == [0.5, 1.0] and report["methods"] == list(NAMES)
    assert report["rules"].keys() == report["curves"].keys() == report["needed"].keys() == {"steps", "epochs"}
    found = [cells(world, seed)["steps-scpo-0.5"] for seed in (0, 1)]
    accuracy = [np.mean([own.count("1") / len(own) for own in cell["correct"].values()]) for cell in found]
    point = report["curves"]["steps"]["scpo"][0]
    assert point["all"]["accuracy"] == pytest.approx(np.mean(accuracy))
    for name in ("annotated", "trained", "steps"):
        assert point[name] == np.mean([sum(own[name] for own in cell["counts"].values()) for cell in found])
    assert "random_subset" in report["ratio"]["steps"] and "full" not in report["ratio"]["steps"]
    text = (world.workdir / "reports" / "benchmark.md").read_text()
    assert "### Pairs needed" in text and "| propose" in text


def test_a_benchmark_alone_has_a_page(world):
    found = Reader((world.workdir / "report.html").read_text(encoding="utf-8"))
    check_page(found)
    report, record = report_of(world), json.loads((world.workdir / "benchmark" / "seed-0" / "run.json").read_text())
    for part in ("jsonl: data efficiency", report["command"], "Pairs needed", "Equal epochs", *GROUPS, *NAMES,
                 "scpo.tau", "Pairs that scpo needs to come within 0.5 points", "Fewer than 20 test users",
                 record["environment"]["jax"], record["environment"]["commit"]):  # fmt: skip
        assert part in found.text, part
    names = {
        f"benchmark_{rule}{kind}" for rule in ("steps", "epochs") for kind in ("", "_subsets", "_trained", "_bought")
    }
    assert {path.stem for path in (world.workdir / "figures").iterdir()} == names and len(found.all("img")) == len(
        names
    )


def test_the_page_warns_of_what_guards_found(world):
    path = world.workdir / "benchmark" / "seed-1" / "reports" / "guards.json"
    before = path.read_bytes()
    finding = {"name": "shared_users", "level": "serious", "count": 3, "of": 9, "what": "<b>users</b>"}
    path.write_text(json.dumps({"findings": [finding], "baselines": {}}))
    page.write_benchmark(Workdir(world.workdir))
    path.write_bytes(before)
    text = Reader((world.workdir / "report.html").read_text(encoding="utf-8")).text
    assert "Seed 1: shared users (serious): 3 of 9 <b>users</b>." in text


def test_finished_cells_are_not_run_again(world, monkeypatch):
    before = snapshot(world.workdir / "benchmark")
    report = report_of(world)
    monkeypatch.setattr(train_groups.Trainer, "fit", None)
    assert run(world) == 0
    assert report_of(world) == report
    after = snapshot(world.workdir / "benchmark")
    assert {path for path in before if before[path] != after[path]} <= {p for p in before if p.endswith("run.json")}


def test_an_interrupted_benchmark_goes_on(world, monkeypatch):
    folder = world.workdir / "benchmark" / "seed-0" / "cells"
    report, before = report_of(world), snapshot(folder)
    missing = [folder / "steps-scpo-0.5.json", folder / "epochs-full-0.5.json"]
    for path in missing:
        os.remove(path)
    trained = []
    fit = train_groups.Trainer.fit
    monkeypatch.setattr(
        train_groups.Trainer, "fit", lambda self, lot, *own: trained.append(lot) or fit(self, lot, *own)
    )
    assert run(world) == 0
    assert len(trained) == 2 and report_of(world) == report
    steps = [sum(training.options.max_steps for training in lot) for lot in trained]
    assert steps == sorted(steps)  # the smaller cell first
    assert {path for path, own in snapshot(folder).items() if own != before[path]} == {str(path) for path in missing}


def test_cells_of_another_config_are_refused_and_redone_with_force(world, capsys):
    arguments = ["benchmark", f"--config={world.config}", f"--workdir={world.workdir}", "--seeds=0", "--budgets=steps"]
    arguments += ["--fractions=1", "--methods=full", TAU]
    before = snapshot(world.workdir / "benchmark" / "seed-0" / "cells")
    capsys.readouterr()
    assert scpo(*arguments, "--config.train.learning_rate=0.02") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert (
        message.startswith("scpo: error: ")
        and "steps-full-1.json is of another config: train.learning_rate: 0.01 -> 0.02" in message
    )
    assert "scpo.tau: 0.5 -> 0.6" in refusal(capsys, *arguments, "--config.scpo.tau=0.6")
    assert snapshot(world.workdir / "benchmark" / "seed-0" / "cells") == before
    path = world.workdir / "benchmark" / "seed-0" / "cells" / "steps-full-1.json"
    good = path.read_bytes()
    assert scpo(*arguments, "--config.train.learning_rate=0.02", "--force") == 0
    assert json.loads(path.read_text())["config"]["train.learning_rate"] == 0.02
    path.write_text("{")
    assert scpo(*arguments) == 2 and "is no cell of a benchmark" in capsys.readouterr().err
    path.write_bytes(good)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--fractions=0.5", "--fractions=0.5: shares of the training users above 0, and 1"),
        ("--fractions=0,1", "above 0, and 1"),
        ("--fractions=half,1", "--fractions=half,1: could not convert"),
        ("--seeds=", "one or more whole numbers"),
        ("--seeds=1.5", "--seeds=1.5: invalid literal"),
        ("--methods=full,dpo", "--methods names 'dpo'; it is one of scpo, full"),
        ("--budgets=time", "--budgets names 'time'"),
        ("--config.scpo.calibrate=true", "config.scpo.calibrate chooses tau and beta with the labels of all"),
        ("--config.scpo.beta=0", "it has to be above 0"),
        ("--steps=3", "unknown flag steps"),
    ],
)
def test_what_is_refused(flag, message, tmp_path, capsys):
    world = World(tmp_path)
    refused = refusal(capsys, "benchmark", f"--config={world.config}", f"--workdir={world.workdir}", flag)
    assert message.replace("dpo'; it", "dpo': it") in refused and not world.workdir.exists()


def test_the_design_has_what_is_always_there():
    design = benchmark.design_of(("1", "0.2"), ("3",), ("scpo",), ("epochs",))
    assert design == ((0.2, 1.0), (3,), ("scpo", "full", "random_subset"), ("epochs",))
    assert len(design.keys()) == 6
