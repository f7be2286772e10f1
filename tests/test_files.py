"""`scpo score`, `scpo evaluate` and `scpo export` with every kind of model."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from scpo_jax import checkpoint, judge, score_files
from scpo_jax.data.preferences import as_text
from scpo_jax.models import hf
from tests import model_helpers
from tests.run_helpers import GROUPS, pairs, read_rows, refusal, scpo, snapshot, write_rows

TEXTS = [
    {"prompt": "question 1", "response": "good answer 3 of 1", "note": {"kept": ["é", None]}},
    {"prompt": [{"role": "user", "content": "question 2"}], "response": "warm reply", "id": 7},
    {"prompt": "question 1", "response": "good answer 3 of 1"},
    {"prompt": "user: question 2", "response": "warm reply"},
    {"response": "", "prompt": ""},
    {"prompt": "long " * 60, "response": "good " * 90 + "\u2028 日本"},
]


@pytest.fixture(scope="module")
def models(finished, tmp_path_factory):
    """A model of every kind: name -> M."""
    folder = tmp_path_factory.mktemp("models")
    trained = finished.workdir / "checkpoints" / "scpo" / "cote-d-ivoire"
    assert scpo("export", f"--checkpoint={trained}", f"--output={folder / 'export'}") == 0
    hf.save(*model_helpers.make("bert"), folder / "model")
    shutil.copytree(finished.workdir / "data" / "tokenizer", folder / "model", dirs_exist_ok=True)
    return {
        "folder": folder / "model",
        "export": folder / "export",
        "checkpoint": trained,
        "workdir": finished.workdir,
    }


def scores_of(model, rows, folder, *flags) -> list[dict]:
    source, output = write_rows(folder / "rows.jsonl", rows), folder / "scored.jsonl"
    output.unlink(missing_ok=True)
    assert scpo("score", f"--model={model}", f"--input={source}", f"--output={output}", *flags) == 0
    return read_rows(output)


@pytest.mark.parametrize("kind", ["folder", "export", "checkpoint", "workdir"])
def test_texts(kind, models, tmp_path):
    scored = scores_of(models[kind], TEXTS, tmp_path)
    assert [{name: value for name, value in row.items() if name != "score"} for row in scored] == TEXTS
    values = [row["score"] for row in scored]
    assert values[0] == values[2] and values[1] == values[3] and len(set(values)) == 4
    backwards = [row["score"] for row in scores_of(models[kind], TEXTS[::-1], tmp_path)]
    np.testing.assert_allclose(backwards[::-1], values, rtol=0, atol=1e-5)
    alone = [scores_of(models[kind], [row], tmp_path)[0]["score"] for row in TEXTS[:2]]
    np.testing.assert_allclose(alone, values[:2], rtol=0, atol=1e-5)


def test_pairs_are_two_texts(models, tmp_path):
    rows = pairs()[:5]
    scored = scores_of(models["folder"], rows, tmp_path)
    for side in ("chosen", "rejected"):
        texts = [{"prompt": row["prompt"], "response": row[side]} for row in rows]
        expected = [row["score"] for row in scores_of(models["folder"], texts, tmp_path)]
        np.testing.assert_allclose([row[f"score_{side}"] for row in scored], expected, rtol=0, atol=1e-5)
    assert list(scored[0]) == [*rows[0], "score_chosen", "score_rejected"]


def test_one_model_in_four_guises(models, finished, tmp_path):
    rows = [row | {"group": GROUPS[1]} for row in TEXTS]
    values = {kind: [r["score"] for r in scores_of(models[kind], rows, tmp_path)] for kind in models}
    assert values["checkpoint"] == values["export"] == values["workdir"]
    assert np.abs(np.subtract(values["folder"], values["export"])).max() > 1e-3


def test_a_workdir_uses_the_model_of_each_group(finished, tmp_path):
    rows = [TEXTS[0] | {"group": group} for group in (*GROUPS, "nobody", "")] + [TEXTS[0]]
    values = [row["score"] for row in scores_of(finished.workdir, rows, tmp_path)]
    folders = [finished.workdir / "checkpoints" / "scpo" / slug for slug in ("x", "cote-d-ivoire")]
    for value, folder in zip(values[:2], folders, strict=True):
        assert value == pytest.approx(scores_of(folder, TEXTS[:1], tmp_path)[0]["score"], abs=1e-6)
    everybody = scores_of(finished.workdir / "checkpoints" / "global", TEXTS[:1], tmp_path)[0]["score"]
    assert values[3:] == pytest.approx([everybody] * 3, abs=1e-6) and len(set(values)) == 4
    values = [row["score"] for row in scores_of(finished.workdir, rows, tmp_path, "--method=global")]
    assert values == pytest.approx([everybody] * 6, abs=1e-6)


def test_a_hub_id_from_the_cache(models, tmp_path, monkeypatch):
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(models["folder"], repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    expected = [row["score"] for row in scores_of(models["folder"], TEXTS, tmp_path)]
    assert [row["score"] for row in scores_of("org/name", TEXTS, tmp_path)] == expected


def test_a_run_may_start_from_a_hub_id_or_a_checkpoint(models, finished, tmp_path):
    """Without a stage global of its own a workdir answers with the model that its config names."""
    flags = ["--config.global_rm.train=false", f"--config.model.name_or_path={models['checkpoint']}"]
    flags += ["--config.scpo.methods=scpo", "--config.train.max_steps=1"]
    assert finished.run(*flags, workdir=tmp_path / "work") == 0
    expected = [row["score"] for row in scores_of(models["checkpoint"], TEXTS, tmp_path)]
    values = [row["score"] for row in scores_of(tmp_path / "work", TEXTS, tmp_path)]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


def test_an_interrupted_output_is_resumed(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(score_files, "ROWS_PER_CHUNK", 4)
    source, output = write_rows(tmp_path / "rows.jsonl", pairs()[:12]), tmp_path / "deep" / "scored.jsonl"
    arguments = ("score", f"--model={models['folder']}", f"--input={source}", f"--output={output}")
    assert scpo(*arguments) == 0
    whole = read_rows(output)
    size = len(output.read_bytes())
    for cut in (0, 1, size // 3, size // 2, size - 1, len(output.read_bytes().split(b"\n")[0]) + 1):
        content = output.read_bytes()
        output.write_bytes(content[:cut])
        assert scpo(*arguments) == 0
        again = read_rows(output)
        assert [r | {"score_chosen": 0, "score_rejected": 0} for r in again] == [
            r | {"score_chosen": 0, "score_rejected": 0} for r in whole
        ]
        for name in ("score_chosen", "score_rejected"):
            np.testing.assert_allclose([r[name] for r in again], [r[name] for r in whole], rtol=0, atol=1e-5)
    before = snapshot(output.parent)
    capsys.readouterr()
    assert scpo(*arguments) == 0
    assert "nothing to do" in capsys.readouterr().err and snapshot(output.parent) == before


def test_an_output_of_something_else_is_refused(models, tmp_path, capsys):
    output = tmp_path / "scored.jsonl"
    scores_of(models["folder"], TEXTS, tmp_path)
    before = snapshot(tmp_path)
    other = tmp_path.parent / f"{tmp_path.name}-other.jsonl"
    for rows in (TEXTS[::-1], TEXTS[:3], [TEXTS[0] | {"note": 1}, *TEXTS[1:]]):
        arguments = (f"--input={write_rows(other, rows)}", f"--output={output}")
        assert "is not of this input" in refusal(capsys, "score", f"--model={models['folder']}", *arguments)
    arguments = (f"--input={tmp_path / 'rows.jsonl'}", f"--output={output}")
    assert "scores of another model" in refusal(capsys, "score", f"--model={models['export']}", *arguments)
    output.write_text("my notes\n")
    assert "scored.jsonl:1 is not of this input" in refusal(capsys, "score", f"--model={models['export']}", *arguments)
    output.write_text(before[str(output)][1].decode())
    assert {k: v and v[1] for k, v in snapshot(tmp_path).items()} == {k: v and v[1] for k, v in before.items()}


MALFORMED = [
    (b"{oops", "not JSON"),
    (b'"text"', "this line is a string"),
    (b'{"prompt": "a"}', "missing field 'response'"),
    (b'{"response": "a"}', "missing field 'prompt'"),
    (b'{"prompt": 3, "response": "a"}', "field 'prompt' is a number"),
    (b'{"prompt": "a", "response": null}', "field 'response' is null"),
    (b'{"prompt": [], "response": "a"}', "empty list"),
    (b'{"prompt": [{"role": "user"}], "response": "a"}', "missing field 'content'"),
    (b'{"prompt": "a", "chosen": "b"}', "missing field 'rejected'"),
    (b'{"prompt": "a", "response": "\xff"}', "not UTF-8"),
    (b'{"prompt": "a", "response": "b", "x": NaN}', "not JSON (NaN"),
]


@pytest.mark.parametrize(("line", "message"), MALFORMED, ids=[message for _, message in MALFORMED])
def test_malformed_rows(line, message, models, tmp_path, capsys):
    source, output = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
    source.write_bytes(b'{"prompt": "a", "response": "b"}\n' + line + b"\n")
    flags = (f"--model={models['folder']}", f"--output={output}")
    refused = refusal(capsys, "score", *flags, f"--input={source}")
    assert f"{source}:2" in refused and message in refused
    refused = refusal(capsys, "evaluate", *flags, f"--data={source}")
    assert str(source) in refused and not output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=nobody/nothing"], "nor from the hub"),
        (["--model="], "--model=... is missing"),
        (["--model=.", "--max_length=3"], "--max_length=3"),
        (["--model={workdir}", "--method=dpo"], "has no method 'dpo': it has global, full, scpo"),
        (["--model={workdir}", "--input=missing.jsonl"], "missing.jsonl does not exist"),
        (["--model={workdir}", "--output=."], "--output=. is a folder"),
    ],
)
def test_what_is_not_there(flags, message, finished, tmp_path, capsys):
    source = write_rows(tmp_path / "rows.jsonl", TEXTS)
    defaults = [f"--input={source}", f"--output={tmp_path / 'out'}"]
    flags = [flag.format(workdir=finished.workdir) for flag in flags]
    assert message in refusal(capsys, "score", *defaults, *flags)
    assert not (tmp_path / "out").exists()


def test_an_unfinished_workdir_is_no_model(finished, tmp_path, capsys):
    shutil.copytree(finished.workdir, tmp_path / "work")
    record = json.loads((tmp_path / "work" / "run.json").read_text())
    del record["stages"]["train"]["finished"]
    (tmp_path / "work" / "run.json").write_text(json.dumps(record))
    arguments = [f"--model={tmp_path / 'work'}", f"--data={finished.data}", f"--output={tmp_path / 'out'}"]
    assert "its stage train has not finished" in refusal(capsys, "evaluate", *arguments)
    assert scpo("evaluate", *arguments, "--method=global") == 0


def by_hand(rows, chosen, rejected, reference) -> dict:
    """The accuracies that `scpo evaluate` has to find, from scores by `scpo score`."""
    right, known = np.greater(chosen, rejected), np.greater(*reference)
    subsets = {"all": np.ones(len(rows), bool), "edited": np.less(*reference), "agreed": known}
    return {
        which: {"n": int(mask.sum()), "accuracy": float(right[mask].mean()) if mask.any() else None}
        for which, mask in subsets.items()
    }


def test_evaluate_by_workdir(finished, tmp_path):
    rows = pairs()
    output = tmp_path / "new" / "evaluation.json"
    flags = [f"--model={finished.workdir}", f"--data={finished.data}", f"--output={output}"]
    assert scpo("evaluate", *flags) == 0
    report = json.loads(output.read_text())
    assert list(report["methods"]) == ["global", "scpo"] and report["groups"] == [*GROUPS, "World"]
    scored = {
        "global": scores_of(finished.workdir, rows, tmp_path, "--method=global"),
        "scpo": scores_of(finished.workdir, rows, tmp_path),
    }
    for method, group in [(m, g) for m in scored for g in report["groups"]]:
        own = {name: [row for row in found if row["group"] == group] for name, found in scored.items()}
        columns = {n: [[r["score_chosen"] for r in o], [r["score_rejected"] for r in o]] for n, o in own.items()}
        expected = by_hand(own[method], *columns[method], columns["global"])
        found = report["methods"][method][group]
        if method == "global":  # constant by definition
            expected["edited"]["accuracy"] = expected["agreed"]["accuracy"] = None
        for which, values in expected.items():
            assert set(found[which]) == {"accuracy", "low", "high", "n", "ties"}
            assert found[which]["n"] == values["n"] and found[which]["ties"] == 0
            assert found[which]["accuracy"] == pytest.approx(values["accuracy"], abs=1e-12)
            if values["accuracy"] is not None:
                assert found[which]["low"] <= values["accuracy"] <= found[which]["high"]
    methods = report["methods"]
    different = [methods["scpo"][group]["all"] != methods["global"][group]["all"] for group in report["groups"]]
    assert different == [True, True, True, False]  # World has no model of its own


def test_evaluate_by_one_model(models, tmp_path):
    rows = [*pairs(users=3), {"prompt": "p", "chosen": "same", "rejected": "same ", "group": "ties"}]
    rows = [{k: v for k, v in row.items() if k not in ("user_id", "pair_id")} for row in rows]
    source, output = write_rows(tmp_path / "pairs.jsonl", rows), tmp_path / "evaluation.json"
    assert scpo("evaluate", f"--model={models['export']}", f"--data={source}", f"--output={output}") == 0
    report = json.loads(output.read_text())
    assert list(report["methods"]) == ["scpo"] and report["groups"][-1] == "ties"
    assert all(records["agreed"]["accuracy"] is None for records in report["methods"]["scpo"].values())
    tie = report["methods"]["scpo"]["ties"]["all"]  # the tokenizer does not see the blank
    assert tie == {"accuracy": 0.0, "low": 0.0, "high": 0.0, "n": 1, "ties": 1}


def test_nothing_to_evaluate_on(models, tmp_path, capsys):
    source = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "a"}])
    flags = [f"--model={models['folder']}", f"--data={source}", f"--output={tmp_path / 'out'}"]
    assert "no usable pair" in refusal(capsys, "evaluate", *flags)


def test_export_refuses(models, finished, tmp_path, capsys):
    refused = refusal(capsys, "export", f"--checkpoint={finished.workdir}", f"--output={tmp_path / 'new'}")
    assert "is not a checkpoint of scpo" in refused and not (tmp_path / "new").exists()
    before = snapshot(pathlib.Path(models["folder"]))
    refused = refusal(capsys, "export", f"--checkpoint={models['checkpoint']}", f"--output={models['folder']}")
    assert "is not an empty folder" in refused and snapshot(pathlib.Path(models["folder"])) == before


def test_an_export_keeps_its_card(models):
    card = checkpoint.load_card(models["checkpoint"])
    opened = judge.open_judge(str(models["export"]))
    assert opened.default.loaded.card == card and opened.method == "scpo" and card["max_length"] == 64


@pytest.mark.parity
def test_an_export_scores_the_same_in_transformers(models, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    ours = [row["score"] for row in scores_of(models["export"], TEXTS[:4], tmp_path)]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(models["export"]).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(models["export"])
    prompts = [as_text(score_files.texts_of(row, "")[0][0]) for row in TEXTS[:4]]
    batch = tokenizer(prompts, [row["response"] for row in TEXTS[:4]], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**batch).logits[:, 0].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
