"""launch/run.sh: what it would do, and what it says to wrong use."""

import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def launch(*arguments: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess:
    environment = {"PATH": path, "SCPO_VENV": "/tmp/no-such-venv"}
    command = ["bash", str(ROOT / "launch" / "run.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60)


def test_dry_run_on_a_cpu():
    done = launch("--local", "--dry-run", "configs/demo.py", "runs/a b", "--config.seed=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "+ python3 -m venv /tmp/no-such-venv",
        f"+ /tmp/no-such-venv/bin/pip install --quiet --editable {ROOT}",
        "+ /tmp/no-such-venv/bin/scpo run --config=configs/demo.py --workdir=runs/a b --config.seed=2",
    ]


def test_a_gpu_gets_the_cuda_extra(tmp_path):
    stub = tmp_path / "nvidia-smi"
    stub.write_text("#!/bin/sh\nexit 0\n")
    stub.chmod(0o755)
    done = launch("--local", "--dry-run", "configs/demo.py", "runs/x", path=f"{tmp_path}:/usr/bin:/bin")
    assert f"--editable {ROOT}[cuda]" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("configs/demo.py", "runs/x"),
        ("--local",),
        ("--local", "configs/demo.py"),
        ("--local", "nope.py", "runs/x"),
        ("--local", "--fast", "configs/demo.py", "runs/x"),
    ],
    ids=" ".join,
)
def test_wrong_use(arguments):
    done = launch(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("launch/run.sh: error:") and done.stderr.count("\n") == 1
