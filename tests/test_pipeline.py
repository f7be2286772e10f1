"""Whole runs: what they leave, what a second one and one of another config does, what they skip."""

import json

import numpy as np
import pytest

from scpo_jax import checkpoint, main
from scpo_jax.data import preferences
from tests.run_helpers import GROUPS, MAJORITY, STAGES, World, pairs, read_rows, refusal, snapshot

SLUGS = {"../../x": "x", "Côte d'Ivoire": "cote-d-ivoire", "日本": preferences.slug("日本")}


def test_what_a_run_leaves(finished):
    work = finished.workdir
    assert sorted(path.name for path in (work / "checkpoints").iterdir()) == ["full", "global", "scpo"]
    for method in ("scpo", "full"):
        assert sorted(path.name for path in (work / "checkpoints" / method).iterdir()) == sorted(SLUGS.values())
    for name in ("full_report", "partial_report", "edited_ratios", "evaluation"):
        assert json.loads((work / "reports" / f"{name}.json").read_text())
    assert all(group in (work / "reports" / "summary.md").read_text() for group in GROUPS)
    assert not [path for path in work.rglob("*") if path.name.endswith((".partial", ".tmp"))]
    assert sorted(path.name for path in finished.folder.iterdir()) == ["config.py", "pairs.jsonl", "work"]
    card = checkpoint.load_card(work / "checkpoints" / "scpo" / SLUGS["日本"])
    assert card["group"] == "日本" and card["method"] == "scpo" and card["steps"] == 6 and card["max_length"] == 64
    assert card["score_std"] > 0 and {"tau", "beta", "encoding", "score_mean", "fingerprint"} <= card.keys()


def test_the_record(finished):
    found = finished.record()
    assert found["config"]["scpo.tau"] == 0.7 and found["command"].startswith("scpo run --config=")
    assert {"jax", "flax", "transformers", "scpo_jax", "commit", "devices", "python"} <= found["environment"].keys()
    assert list(found["stages"]) == STAGES and all(s["seconds"] >= 0 for s in found["stages"].values())
    assert list(found["stages"]["prepare"]["inputs"]) == [str(finished.data)]


def test_the_selection(finished):
    rows = preferences.read_table(finished.workdir / "selection.parquet").to_pylist()
    assert {row["group"] for row in rows} == set(GROUPS) and len(rows) == 48
    for row in rows:
        difference = row["ref_chosen"] - row["ref_rejected"]
        limit = 0.7 if row["split"] == "train" else 0.5
        assert row["keep"] == (1 / (1 + np.exp(-difference)) < limit)
        assert row["weight"] == pytest.approx(min(np.exp(difference / 1.1), 1), rel=1e-5)
        assert row["uncertain"] == (0.3 < row["p_global"] < 0.7) and row["trim"] == (row["p_global"] > 0.1)
        assert (row["tau"], row["beta"]) == (0.7, 1.1)


def test_a_second_run_does_nothing(copy, finished, capsys):
    before = snapshot(copy.workdir)
    assert copy.run() == 0
    assert capsys.readouterr().err.count("\n") == 1 and snapshot(copy.workdir) == before
    assert copy.run("--stages=select,train") == 0 and copy.run("--force") == 0
    assert "nothing to do: select, train\n" in capsys.readouterr().err and snapshot(copy.workdir) == before


def test_another_config_is_refused_and_forced(copy, capsys):
    arguments = ("run", f"--config={copy.config}", f"--workdir={copy.workdir}")
    flags = ("--config.scpo.tau=0.4", "--config.train.learning_rate=0.02")
    before = snapshot(copy.workdir)
    refused = refusal(capsys, *arguments, *flags)
    assert "scpo.tau: 0.7 -> 0.4" in refused and "train.learning_rate: 0.01 -> 0.02" in refused
    assert "Stages to redo: select, train, evaluate, report." in refused
    assert snapshot(copy.workdir) == before
    old = copy.record()["stages"]
    assert copy.run(*flags, "--force") == 0
    new = copy.record()["stages"]
    assert [name for name in STAGES if new[name] == old[name]] == ["prepare", "global", "score"]
    selection = preferences.read_table(copy.workdir / "selection.parquet").to_pylist()
    assert {
        row["keep"] for row in selection if row["split"] == "train" and row["ref_chosen"] > row["ref_rejected"]
    } == {False}
    assert "the stages that they read" not in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("flag", "first"),
    [
        ("--config.seed=5", "prepare"),
        ("--config.data.test_size=0.4", "prepare"),
        ("--config.global_rm.max_steps=7", "global"),
        ("--config.train.weight_decay=0.1", "global"),
        ("--config.train.eval_every=2", "train"),
        ("--config.scpo.methods=scpo", "train"),
        ("--config.scpo.beta=2", "select"),
        ("--config.per_group=(('日本','tau',.5),)", "select"),
        ("--config.checkpoint.every_steps=0", None),
    ],
)
def test_stages_that_a_key_touches(flag, first, finished, capsys):
    if first is None:
        assert finished.run(flag) == 0
    else:
        refused = refusal(capsys, "run", f"--config={finished.config}", f"--workdir={finished.workdir}", flag)
        # a key that global and train share redoes everything from global on
        assert f"Stages to redo: {', '.join(STAGES[STAGES.index(first) :])}." in refused
        assert flag.split("=")[0].removeprefix("--config.") + ": " in refused


def test_changed_data_are_noticed(tmp_path, capsys):
    world = World(tmp_path)
    assert world.run("--stages=prepare") == 0
    world.data.write_text(world.data.read_text().replace("warm", "cold"))
    refused = refusal(capsys, "run", f"--config={world.config}", f"--workdir={world.workdir}")
    assert f"{world.data}: " in refused and "Stages to redo: prepare." in refused


def test_forcing_bad_data_keeps_what_there_is(copy, tmp_path, capsys):
    before = snapshot(copy.workdir)
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(copy.data.read_bytes() + b"{oops\n")
    flags = (f"--config.data.path={bad}", "--force")
    assert "bad.jsonl:65" in refusal(capsys, "run", f"--config={copy.config}", f"--workdir={copy.workdir}", *flags)
    after = snapshot(copy.workdir)
    assert {path: after[path] and after[path][1] for path in after} == {p: v and v[1] for p, v in before.items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data/summary.json", b"\0" * 64),
        ("reports/evaluation.json", b'{"groups": ["Chi'),
        ("reports/guards.json", b""),
        ("reports/examples.json", b"[]"),
        ("reports/examples.json", b'{"Chile": "\xff"}'),
    ],
)
def test_a_damaged_file_of_an_earlier_stage_is_named(copy, capsys, name, content):
    (copy.workdir / name).write_bytes(content)
    record = copy.record()
    del record["stages"]["report"]
    (copy.workdir / "run.json").write_text(json.dumps(record))
    before = snapshot(copy.workdir)
    line = refusal(capsys, "run", f"--config={copy.config}", f"--workdir={copy.workdir}")
    assert f"{copy.workdir / name}: not " in line and "bring the file back, or use another --workdir" in line
    after = snapshot(copy.workdir)
    del before[str(copy.workdir / "run.json")], after[str(copy.workdir / "run.json")]
    assert after == before and copy.record()["stages"] == record["stages"]


def test_nothing_is_exported_beside_a_damaged_evaluation(copy, tmp_path, capsys):
    (copy.workdir / "reports" / "evaluation.json").write_bytes(b"\0" * 64)
    flags = f"--checkpoint={copy.workdir / 'checkpoints' / 'global'}", f"--output={tmp_path / 'rm'}"
    assert "evaluation.json: not readable as JSON" in refusal(capsys, "export", *flags)
    assert not (tmp_path / "rm").exists()


def test_groups_that_lack_something_are_named_and_skipped(tmp_path, capsys):
    solo = [f"solo {i}" for i in range(5)]
    rows = pairs((MAJORITY, "Chile")) + pairs(solo, users=1)
    rows += [row | {"chosen": row["rejected"]} for row in pairs(["nobody"], users=1)]
    rows += [dict(rows[0], pair_id="empty", chosen=" "), dict(rows[0], pair_id="long", chosen="good " * 80)]
    world = World(
        tmp_path,
        [row | {key: f"{row['group']} {row[key]}" for key in ("user_id", "pair_id")} for row in rows],
        groups=(),
    )
    flags = ["--config.data.split_seed=1", "--config.train.max_steps=1", "--config.checkpoint.every_steps=0"]
    assert world.run("--config.per_group=(('Chile', 'tau', 1e-9),)", *flags) == 0
    told = capsys.readouterr().err
    split = json.loads((world.workdir / "data" / "split.json").read_text())
    in_test = [group for group in solo if any(user.startswith(group) for user in split["test"])]
    assert 0 < len(in_test) < 5
    for group in solo:
        assert (f"train: {group} has no training pair, skipped" in told) == (group in in_test)
        assert (f"evaluate: {group} has no test pair, skipped" in told) == (group not in in_test)
    assert "prepare: nobody has no pair, skipped" in told
    assert "train: scpo/chile keeps no pair, skipped" in told and "train: full/chile" not in told
    report = json.loads((world.workdir / "reports" / "evaluation.json").read_text())
    assert sorted(report["groups"]) == sorted(["Chile", *in_test])
    assert list(report["methods"]["full"]) == ["Chile"] and report["methods"]["scpo"] == {}
    summary = json.loads((world.workdir / "data" / "summary.json").read_text())
    assert summary["dropped"] == {"equal_responses": 2, "empty_response": 1} and summary["cut_texts"] == 1
    assert summary["without_test_pairs"] == sorted(["nobody", *set(solo) - set(in_test)])


@pytest.mark.parametrize(
    "flags",
    [
        ["--config.scpo.methods="],
        ["--config.data.test_size=0"],
        ["--config.data.group_by=none", "--config.data.groups=", "--config.global_rm.groups="],
    ],
)
def test_runs_with_little_to_do(flags, tmp_path):
    world = World(tmp_path)
    assert world.run(*flags, "--config.train.max_steps=1", "--config.global_rm.max_steps=1") == 0
    report = json.loads((world.workdir / "reports" / "evaluation.json").read_text())
    assert ("scpo" in report["methods"]) == ("methods=" not in flags[0])
    expected = {"methods": list(GROUPS), "test_size": [], "group_by": ["all"]}
    assert report["groups"] == next(groups for name, groups in expected.items() if name in flags[0])


def test_every_pair_may_be_agreed_on(tmp_path):
    """No edited test pair anywhere: a global RM of the groups' own."""
    world = World(tmp_path, pairs(users=6))
    rows = [row | {"chosen": "good", "rejected": f"warm {i}"} for i, row in enumerate(read_rows(world.data))]
    world.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--config.global_rm.max_steps=40", "--config.global_rm.learning_rate=0.02", "--config.train.max_steps=1"]
    assert world.run(*flags, "--config.scpo.methods=scpo") == 0
    report = json.loads((world.workdir / "reports" / "evaluation.json").read_text())
    empty = {"accuracy": None, "low": None, "high": None, "n": 0, "ties": 0}
    assert all(records["edited"] == empty for records in report["methods"]["global"].values())


def test_simulated_groups_and_majority(tmp_path):
    """The demo's own data source leaves its truth, and majority groups are not steered."""
    world = World(tmp_path, groups=("Chile",))
    flags = ["--config.data.source=simulated", "--config.data.simulated.users_per_group=6"]
    flags += ["--config.global_rm.groups=United States", "--config.global_rm.max_steps=1", "--config.train.max_steps=1"]
    flags += ["--config.model.max_length=16"]
    assert world.run(*flags, "--config.scpo.methods=scpo") == 0
    assert (world.workdir / "data" / "simulated" / "truth.json").exists()
    report = json.loads((world.workdir / "reports" / "evaluation.json").read_text())
    assert report["groups"] == ["Chile"] and list(report["majority"]) == ["United States"]


def test_a_simulated_world_has_no_input_files_and_is_not_made_twice(tmp_path, capsys):
    arguments = [
        "scpo", "run", "--config=configs/demo.py", f"--workdir={tmp_path}", "--stages=prepare",
        "--config.data.simulated.users_per_group=6",
    ]  # fmt: skip
    assert main.main(arguments) == 0
    capsys.readouterr()
    assert main.main(arguments) == 0
    assert "nothing to do: prepare" in capsys.readouterr().err
