"""A run with the method "heads": its checkpoints, and what scores, steers, evaluates and exports with them."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from scpo_jax import checkpoint, judge, score, train_reward
from scpo_jax.data import preferences
from scpo_jax.models import hf
from scpo_jax.serve_blends import Blends
from scpo_jax.training_state import TrainingState
from scpo_jax.workdir import Workdir
from tests.run_helpers import GROUPS, World, compiling, pairs, read_rows, refusal, scpo, write_rows
from tests.test_resume import Killed, killing

FLAGS = ("--config.scpo.methods=scpo,heads", "--force")


def copy_of(finished, folder) -> World:
    """The finished run of scpo and full, as if in another folder."""
    world = World(folder)
    world.config, world.data = finished.config, finished.data
    shutil.copytree(finished.workdir, world.workdir)
    return world


@pytest.fixture(scope="module")
def world(finished, tmp_path_factory):
    world = copy_of(finished, tmp_path_factory.mktemp("heads"))
    with compiling(optimized=False):
        assert world.run(*FLAGS) == 0
    return world


@pytest.fixture(scope="module")
def run(world) -> Workdir:
    return Workdir(world.workdir)


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str], list[str]]:
    """Prompts, responses and groups, one of them without an RM."""
    rows = pairs(users=2)
    return [row["prompt"] for row in rows], [row["chosen"] for row in rows], [row["group"] for row in rows]


@functools.cache
def alone(folder) -> judge.Scorer:
    """A checkpoint as a model of its own."""
    return judge.open_judge(str(folder)).default


def same(ours, theirs) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_the_checkpoints(world, run):
    backbone, folders = checkpoint.load(run.backbone_of("heads")), run.groups("heads")
    assert backbone.model.heads == GROUPS == tuple(sorted(folders, key=GROUPS.index))
    assert {path.name for path in (run.checkpoints / "heads").iterdir()} == {
        "_backbone",
        *(path.name for path in folders.values()),
    }
    cards = {group: checkpoint.load_card(folder) for group, folder in folders.items()}
    assert {card["steps"] for card in cards.values()} == {3 * 6} == {backbone.card["steps"]}
    assert sum(card["pairs"] for card in cards.values()) == backbone.card["pairs"]
    own = {group: checkpoint.load_card(folder) for group, folder in run.groups("scpo").items()}
    assert all(cards[g][key] == own[g][key] for g in GROUPS for key in ("group", "pairs", "tau", "beta", "encoding"))
    kernel = backbone.params["score"]["kernel"]
    assert np.abs(kernel - kernel[:, :1]).max(0)[1:].min() > 1e-4
    for column, group in enumerate(GROUPS):
        head = checkpoint.load(folders[group])
        assert head.model.heads == () and same(head.params["score"]["kernel"], kernel[:, column : column + 1])
        assert same(head.params | {"score": 0}, backbone.params | {"score": 0})
        assert "embedding" not in (folders[group] / "params" / "_METADATA").read_text()
    assert "heads" in {row["training"] for row in read_rows(world.workdir / "metrics.jsonl")}


def test_all_groups_are_scored_in_one_pass(run, texts, monkeypatch):
    passes = []

    def counting(function, params, own, *arguments):
        passes.append(function.of_text)
        return batches(function, params, own, *arguments)

    batches = score.score_batches
    opened = judge.open_judge(str(run.root), method="heads")
    with monkeypatch.context() as patch:
        patch.setattr(score, "score_batches", counting)
        scores, everything = opened.score(*texts), opened.score_all(*texts[:2])
    assert passes == [(3,), (), (3,)] and everything.shape == (len(scores), 3)
    assert np.std(everything, axis=1).min() > 1e-4
    folders = opened.groups
    for column, group in enumerate(folders):
        np.testing.assert_allclose(everything[:, column], alone(folders[group])(*texts[:2]), rtol=0, atol=1e-5)
    nobody, columns = alone(run.global_checkpoint)(*texts[:2]), list(folders)
    wanted = [everything[i, columns.index(g)] if g in folders else nobody[i] for i, g in enumerate(texts[2])]
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-5)
    assert opened.score([], [], []).shape == (0,) and opened.score_all([], []).shape == (0, 3)


def test_score_all_of_a_method_whose_groups_share_nothing(run, texts):
    opened = judge.open_judge(str(run.root), method="scpo")
    everything = opened.score_all(*texts[:2])
    for column, folder in enumerate(opened.groups.values()):
        np.testing.assert_allclose(everything[:, column], alone(folder)(*texts[:2]), rtol=0, atol=1e-6)


def test_a_blend_of_heads_is_that_of_their_scores(run, texts):
    columns = judge.open_judge(str(run.root), method="heads").score_all(*texts[:2])
    names = list(run.groups("heads"))
    profile = {names[0]: 0.3, names[2]: 0.9, names[1]: -0.2}
    blended = judge.open_judge(str(run.root), method="heads", profile=json.dumps(profile)).default(*texts[:2])
    np.testing.assert_allclose(blended, columns @ [0.3, -0.2, 0.9], rtol=0, atol=1e-5)
    for profile, folder in (("{}", run.global_checkpoint), (f"{GROUPS[2]}=1", run.groups("heads")[GROUPS[2]])):
        assert same(judge.load_blend(str(run.root), "heads", profile).params, checkpoint.load(folder).params)


def test_a_service_blends_heads_and_holds_their_backbone_once(run):
    blends = Blends(judge.open_judge(str(run.root), method="heads"))
    assert blends.groups == sorted(GROUPS)
    profile = {GROUPS[0]: 0.4, GROUPS[2]: 0.6}
    assert same(blends(profile), judge.load_blend(str(run.root), "heads", json.dumps(profile)).params)
    first, *others = [blends._groups[group][1]["layers"] for group in GROUPS]
    for own in others:
        assert jax.tree.all(jax.tree.map(lambda a, b: a is b, own, first))


def test_the_evaluation_is_that_of_the_heads(run):
    report = json.loads((run.reports / "evaluation.json").read_text())
    assert list(report["methods"]) == ["global", "scpo", "heads"] and set(report["methods"]["heads"]) == set(GROUPS)
    assert report["bias"]["heads"].keys() == set(GROUPS) and report["steps"]["heads"] == dict.fromkeys(GROUPS, 18)
    margins = {
        row["pair_id"]: row["margin"]
        for row in preferences.read_table(run.test_scores).to_pylist()
        if row["method"] == "heads"
    }
    folders = run.groups("heads")
    rows = [row for row in preferences.read_table(run.pairs).to_pylist() if row["pair_id"] in margins]
    assert {row["group"] for row in rows} == set(GROUPS) and np.std(list(margins.values())) > 1e-3
    for group in GROUPS:
        own = [row for row in rows if row["group"] == group]
        sides = [alone(folders[group])([r["prompt"] for r in own], [r[s] for r in own]) for s in ("chosen", "rejected")]
        np.testing.assert_allclose([margins[r["pair_id"]] for r in own], sides[0] - sides[1], rtol=0, atol=1e-5)


def test_a_head_is_exported_as_a_plain_model_and_the_backbone_with_all_labels(run, texts, tmp_path, capsys):
    backbone, folders = run.backbone_of("heads"), run.groups("heads")
    assert scpo("export", f"--checkpoint={folders[GROUPS[1]]}", f"--output={tmp_path / 'one'}") == 0
    np.testing.assert_allclose(alone(tmp_path / "one")(*texts[:2]), alone(folders[GROUPS[1]])(*texts[:2]), atol=1e-5)
    assert "a score head on the pairs of each" in (tmp_path / "one/README.md").read_text()
    assert scpo("export", f"--checkpoint={backbone}", f"--output={tmp_path / 'all'}") == 0
    config = json.loads((tmp_path / "all/config.json").read_text())
    assert config["id2label"] == {str(i): group for i, group in enumerate(GROUPS)} and config["num_labels"] == 3
    card = (tmp_path / "all/README.md").read_text()
    assert "as many scores, each higher for what one of these prefer" in card and "model.config.id2label" in card
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "response": "b"}])
    for model, message in (
        (tmp_path / "all", "a reward model has one label"),
        (backbone, "name the folder of one beside it"),
    ):
        flags = [f"--model={model}", f"--input={rows}", f"--output={tmp_path / 'out'}"]
        assert message in refusal(capsys, "score", *flags)


@pytest.mark.parity
def test_transformers_gives_the_scores_of_all_groups(run, texts, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    assert scpo("export", f"--checkpoint={run.backbone_of('heads')}", f"--output={tmp_path / 'all'}") == 0
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "all").eval()
    tokenizer = hf.load_tokenizer(tmp_path / "all")
    with torch.no_grad():
        theirs = model(**tokenizer(*texts[:2], return_tensors="pt", padding=True)).logits.numpy()
    opened = judge.open_judge(str(run.root), method="heads")
    columns = [list(model.config.id2label.values()).index(group) for group in opened.groups]
    np.testing.assert_allclose(opened.score_all(*texts[:2]), theirs[:, columns], rtol=0, atol=1e-5)


def test_a_backbone_is_no_global_rm(run, tmp_path, capsys):
    other = World(tmp_path)
    flags = (f"--config.model.name_or_path={run.backbone_of('heads')}", "--config.global_rm.train=false")
    line = refusal(capsys, "run", f"--config={other.config}", f"--workdir={other.workdir}", *flags)
    assert "name the folder of one beside it" in line


def test_a_killed_training_goes_on_and_missing_heads_are_written_again(world, finished, tmp_path, monkeypatch):
    again = copy_of(finished, tmp_path)
    flags = ("--config.scpo.methods=heads", "--stages=train", "--force")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", killing(TrainingState.save, 3))
        with pytest.raises(Killed):
            again.run(*flags)
    assert again.run(*flags) == 0
    record, folders = again.record(), Workdir(again.workdir).groups("heads")
    del record["stages"]["train"]["finished"]
    (again.workdir / "run.json").write_text(json.dumps(record))
    shutil.rmtree(folders[GROUPS[1]])
    with monkeypatch.context() as patch:
        patch.setattr(train_reward, "train", None)  # the backbone stands
        assert again.run(*flags) == 0
    theirs = Workdir(world.workdir).groups("heads")
    for group, folder in folders.items():
        assert same(checkpoint.load(folder).params, checkpoint.load(theirs[group]).params)
