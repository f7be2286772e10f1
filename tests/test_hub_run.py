"""The paper's config, with data set and model from the hub: the real client on a local cache, nothing fetched."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import safetensors.numpy

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(cache: pathlib.Path, kind: str, name: str, files: list[pathlib.Path]) -> pathlib.Path:
    """Lays files out as the client's cache has them."""
    folder = cache / f"{kind}--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in files:
        shutil.copy(file, snapshot / file.name)
    return snapshot


def as_torch_file(snapshot: pathlib.Path) -> None:
    """The form in which the paper's model is published."""
    torch = pytest.importorskip("torch", reason="pytorch_model.bin needs torch")
    weights = safetensors.numpy.load_file(snapshot / "model.safetensors")
    torch.save({name: torch.tensor(value) for name, value in weights.items()}, snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()


@pytest.mark.parametrize("form", ["safetensors", pytest.param("bin", marks=pytest.mark.parity)])
def test_the_papers_config_from_the_hub(form, shared, tmp_path):
    hub = tmp_path / "home" / "hub"
    data, model = shared / "reference" / "prism_like", shared / "reference" / "model"
    put(hub, "datasets", "HannahRoseKirk/prism-alignment", [data / "survey.jsonl", data / "utterances.jsonl"])
    snapshot = put(hub, "models", "OpenAssistant/reward-model-deberta-v3-base", list(model.iterdir()))
    if form == "bin":
        as_torch_file(snapshot)
    command = [
        sys.executable, "-m", "scpo_jax.main", "run", "--config=configs/prism_deberta.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.groups=Israel", "--config.scpo.methods=scpo", "--config.train.max_steps=2",
        "--config.model.encoding=reference",
    ]  # fmt: skip
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the form "bin" too
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "reports" / "full_report.json").read_text())
    assert report["Israel"]["start"] == pytest.approx(14 / 26 * 100)
