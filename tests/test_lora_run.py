"""The whole pipeline with adapters on a tiny Llama: checkpoints without the base, scores, exports in both forms."""

import json
import shutil

import jax
import numpy as np
import pytest

from scpo_jax import checkpoint, hub
from scpo_jax.errors import InputError
from scpo_jax.models import lora
from tests import run_helpers
from tests.run_helpers import refusal
from tests.test_llama_run import CONFIG, make_model
from tests.test_llama_run import scores as scores_into

FLAGS = """    config.scpo.methods = ("scpo",)
    config.train.lora.rank = 2
    config.train.lora.targets = ("q_proj", "v_proj", "down_proj")
    config.train.lora.dropout = 0.1
    return config
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder with the `model` that a run started from and the run's folder `work`."""
    folder = tmp_path_factory.mktemp("lora")
    make_model(folder / "model")
    config = CONFIG.format(folder=str(folder / "model")).replace("    return config\n", FLAGS)
    (folder / "config.py").write_text(config, encoding="utf-8")
    assert run_helpers.scpo("run", f"--config={folder / 'config.py'}", f"--workdir={folder / 'work'}") == 0
    return folder


@pytest.fixture
def chile(finished):
    return finished / "work/checkpoints/scpo/chile"


def scores(model, folder, *flags) -> list[float]:
    """What `scpo score` gives a few texts."""
    (folder / "out.jsonl").unlink(missing_ok=True)
    return scores_into(model, folder, *flags)


def test_checkpoints_hold_adapters_and_head_and_name_their_base(finished, chile):
    start, loaded = (checkpoint.load(path) for path in (finished / "work/checkpoints/global", chile))
    trained, frozen = lora.split(loaded.params)
    jax.tree.map(np.testing.assert_array_equal, frozen, lora.split(lora.join(trained, start.params))[1])
    attention = trained["layers"]["attention"]
    assert attention.keys() == {"query", "value"} and np.abs(attention["query"]["lora_b"]).max() > 1e-3
    assert np.abs(trained["score"]["kernel"] - start.params["score"]["kernel"]).max() > 1e-3
    assert loaded.card["base"]["name"] == "../../global" and loaded.model.lora.dropout == 0.1
    metadata = (chile / "params/_METADATA").read_text()
    assert "lora_a" in metadata and "embedding" not in metadata
    report = json.loads((finished / "work/reports/evaluation.json").read_text())
    assert all(record["all"]["n"] > 0 for record in report["methods"]["scpo"].values())


def test_a_workdir_may_move_and_a_base_may_not_change(finished, chile, tmp_path, capsys):
    ours = scores(chile, tmp_path)
    assert np.std(ours) > 1e-3 and ours != scores(finished / "work/checkpoints/global", tmp_path)
    shutil.copytree(finished / "work", tmp_path / "moved")
    there = tmp_path / "moved/checkpoints"
    assert scores(there / "scpo/chile", tmp_path) == ours
    start = checkpoint.load(there / "global")
    shutil.rmtree(there / "global")
    checkpoint._load_base.cache_clear()  # as another process would see it
    flags = [f"--input={tmp_path / 'rows.jsonl'}", f"--output={tmp_path / 'new.jsonl'}"]
    line = refusal(capsys, "score", f"--model={there / 'scpo/chile'}", *flags)
    assert "holds adapters alone, and their base cannot be read" in line and str(there / "global") in line
    changed = jax.tree.map(lambda leaf: leaf + 1e-3, start.params)
    checkpoint.save(there / "global", start._replace(params=changed))
    with pytest.raises(InputError, match="another model than the one of that training"):
        checkpoint.load(there / "scpo/chile")


def test_profiles_blend_what_the_adapters_say(finished, chile, tmp_path):
    """In weight space: sum of strengths times products of adapters, and of heads."""
    work, start = finished / "work", scores(finished / "work/checkpoints/global", tmp_path)
    assert scores(work, tmp_path, "--profile={}") == start
    own = scores(chile, tmp_path)
    np.testing.assert_allclose(scores(work, tmp_path, "--profile=Chile=1"), own, rtol=0, atol=1e-6)
    loaded, plain = checkpoint.load(chile), checkpoint.load(work / "checkpoints/global")
    half = checkpoint.load_merged(chile).params  # by hand: half of the product, and of the way of the head
    for name in ("query", "value"):
        adapters = loaded.params["layers"]["attention"][name]
        product = np.matmul(adapters["lora_a"], adapters["lora_b"]) * loaded.model.lora.scale
        half["layers"]["attention"][name]["kernel"] = adapters["kernel"] + 0.5 * product
    down = loaded.params["layers"]["feed_forward"]["output"]
    product = np.matmul(down["lora_a"], down["lora_b"]) * loaded.model.lora.scale
    half["layers"]["feed_forward"]["output"]["kernel"] = down["kernel"] + 0.5 * product
    half["score"]["kernel"] = 0.5 * (plain.params["score"]["kernel"] + loaded.params["score"]["kernel"])
    checkpoint.save(tmp_path / "half", plain._replace(params=half))
    blended = scores(work, tmp_path, "--profile=Chile=0.5")
    np.testing.assert_allclose(blended, scores(tmp_path / "half", tmp_path), rtol=0, atol=1e-6)
    assert min(np.abs(np.subtract(blended, own)).max(), np.abs(np.subtract(blended, start)).max()) > 1e-4


def test_the_export_is_a_plain_model_with_the_same_scores(chile, tmp_path):
    ours = scores(chile, tmp_path)
    assert run_helpers.scpo("export", f"--checkpoint={chile}", f"--output={tmp_path / 'export'}") == 0
    np.testing.assert_allclose(scores(tmp_path / "export", tmp_path), ours, rtol=0, atol=1e-5)
    assert "lora" not in (tmp_path / "export/config.json").read_text()


def test_adapters_alone_are_written_for_peft_and_read_again(finished, chile, tmp_path, capsys):
    ours = scores(chile, tmp_path)
    assert run_helpers.scpo("export", f"--checkpoint={chile}", f"--output={tmp_path / 'peft'}", "--format=peft") == 0
    assert json.loads((tmp_path / "peft/adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "peft/base"
    )
    np.testing.assert_allclose(scores(tmp_path / "peft", tmp_path), ours, rtol=0, atol=1e-6)
    flags = [f"--checkpoint={finished / 'work/checkpoints/global'}", f"--output={tmp_path / 'no'}", "--format=peft"]
    assert "has no adapters" in refusal(capsys, "export", *flags)


def test_the_card_of_adapters_loads_them_and_a_local_base_is_not_uploaded(chile, tmp_path, capsys, monkeypatch):
    flags = [f"--checkpoint={chile}", "--format=peft"]
    assert run_helpers.scpo("export", *flags, f"--output={tmp_path / 'peft'}") == 0
    card = (tmp_path / "peft/README.md").read_text()
    assert "library_name: peft" in card and "AutoPeftModelForSequenceClassification as AutoModel" in card
    assert "| adapters | LoRA of rank 2, alpha 16 |" in card and str(tmp_path) not in card
    monkeypatch.setattr(hub, "check", lambda repository: None)
    line = refusal(capsys, "export", *flags, f"--output={tmp_path / 'no'}", "--push_to_hub=me/rm")
    assert "which the hub does not have: upload the merged model" in line and not (tmp_path / "no").exists()


def test_a_run_may_start_from_adapters(finished, chile, tmp_path):
    """They are merged first: the new base is a checkpoint of adapters itself."""
    flags = [f"--config={finished / 'config.py'}", f"--workdir={tmp_path / 'work'}", "--config.global_rm.train=False"]
    flags += [f"--config.model.name_or_path={chile}", "--config.train.max_steps=2", "--config.data.groups=Mexico"]
    assert run_helpers.scpo("run", *flags) == 0
    mexico = checkpoint.load(tmp_path / "work/checkpoints/scpo/mexico")
    assert mexico.card["base"]["name"] == str(chile)
    merged = checkpoint.load_merged(chile).params["layers"]["attention"]["query"]["kernel"]
    np.testing.assert_array_equal(mexico.params["layers"]["attention"]["query"]["kernel"], merged)
    ours = scores(chile, tmp_path)
    np.testing.assert_allclose(scores(tmp_path / "work", tmp_path, "--profile={}"), ours, rtol=0, atol=1e-6)
    own = scores(tmp_path / "work/checkpoints/scpo/mexico", tmp_path)
    np.testing.assert_allclose(scores(tmp_path / "work", tmp_path, "--profile=Mexico=1"), own, rtol=0, atol=1e-6)
