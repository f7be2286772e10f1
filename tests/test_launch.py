"""launch/run.sh on this machine: what it would do, and what it says to wrong use; which models need torch."""

import importlib.util
import subprocess

import pytest
from ml_collections import ConfigDict

from tests.launch_helpers import BASH, ROOT


def launch(*arguments: str, path="/usr/bin:/bin", venv="/tmp/no-such-venv") -> subprocess.CompletedProcess:
    environment = {"PATH": path, "SCPO_VENV": str(venv)}
    command = [BASH, str(ROOT / "launch" / "run.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60)


def test_dry_run_on_a_cpu():
    done = launch("--local", "--dry-run", "configs/demo.py", "runs/a b", "--config.seed=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "+ python3 -m venv /tmp/no-such-venv",
        f"+ /tmp/no-such-venv/bin/python -m pip install --quiet --editable {ROOT}",
        f"+ /tmp/no-such-venv/bin/python {ROOT}/launch/needs_torch.py --config=configs/demo.py --config.seed=2",
        "# and if that says torch:",
        "+ /tmp/no-such-venv/bin/python -m pip install --quiet 'torch>=2.4' "
        "--index-url=https://download.pytorch.org/whl/cpu",
        "+ /tmp/no-such-venv/bin/scpo run --config=configs/demo.py '--workdir=runs/a b' --config.seed=2",
    ]


def test_a_gpu_gets_the_cuda_extra(tmp_path):
    stub = tmp_path / "nvidia-smi"
    stub.write_text("#!/bin/sh\nexit 0\n")
    stub.chmod(0o755)
    done = launch("--local", "--dry-run", "configs/demo.py", "runs/x", path=f"{tmp_path}:/usr/bin:/bin")
    assert f"--editable '{ROOT}[cuda]'" in done.stdout


@pytest.mark.parametrize(("found", "flag"), [("pyvenv.cfg", "--clear "), ("thesis.tex", "")])
def test_a_broken_environment_is_made_anew_and_nothing_else_removed(found, flag, tmp_path):
    """As when its Python was removed by an upgrade."""
    (tmp_path / found).touch()
    done = launch("--local", "--dry-run", "configs/demo.py", "runs/x", venv=tmp_path)
    assert done.stdout.splitlines()[0] == f"+ python3 -m venv {flag}{tmp_path}"


@pytest.mark.parametrize(
    "arguments",
    [
        ("configs/demo.py", "runs/x"),
        ("--local",),
        ("--local", "configs/demo.py"),
        ("--local", "nope.py", "runs/x"),
        ("--local", "--fast", "configs/demo.py", "runs/x"),
        ("--local", "configs/demo.py", "runs/x", "more"),
        ("stop",),
        ("stop", "pod", "--config.seed=2"),
    ],
    ids=" ".join,
)
def test_wrong_use(arguments):
    done = launch(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("launch/run.sh: error:") and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def needs_torch():
    spec = importlib.util.spec_from_file_location("needs_torch", ROOT / "launch" / "needs_torch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("files", "needed"),
    [
        (("pytorch_model.bin",), True),
        (("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"), True),
        (("pytorch_model.bin", "model.safetensors"), False),
        (("model-00001-of-00002.safetensors",), False),
        (("pytorch_model.bin", "model/", "params/"), False),  # a checkpoint of ours, whatever else lies there
    ],
    ids=str,
)
def test_torch_is_for_models_that_have_only_a_bin(files, needed, needs_torch, tmp_path):
    for name in files:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("")
    assert needs_torch.is_torch_only(ConfigDict({"name_or_path": str(tmp_path), "revision": ""})) == needed


def test_what_the_installer_asks(needs_torch, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "pytorch_model.bin").write_text("")
    given = ["needs_torch.py", f"--config={ROOT}/configs/demo.py"]
    assert needs_torch.main(given) == 0 and capsys.readouterr().out == ""
    assert needs_torch.main([*given, f"--config.model.name_or_path={tmp_path}"]) == 0
    assert capsys.readouterr().out == "torch\n"
    assert needs_torch.main([*given, "--config.modle=x"]) == 2 and needs_torch.main(["", "--config=nowhere.py"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("needs_torch.py: error: ") == 2 == told.err.count("\n")
