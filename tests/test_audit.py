"""The audit of CI: what it makes of pip-audit's answers, or of none. A stand-in on PATH answers."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

AUDIT = pathlib.Path(__file__).resolve().parents[1] / ".ci" / "audit.py"
FROZEN = "jax==0.10.2\nurllib3==1.0\nscpo_jax @ file:///tmp/x\n-e git+https://example.org#egg=y\n"


def audited(folder, answer: str, code: int) -> tuple[int, str]:
    """(exit code, output) where pip-audit prints `answer`."""
    tool = folder / "pip-audit"
    (folder / "answer").write_text(answer)
    tool.write_text(f'#!/bin/sh\ncp "$2" {folder}/asked\ncat {folder}/answer\necho offline >&2\nexit {code}\n')
    tool.chmod(0o755)
    return run(os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"})


def run(variables) -> tuple[int, str]:
    done = subprocess.run([sys.executable, AUDIT], input=FROZEN, capture_output=True, text=True, env=variables)
    assert done.stderr == ""
    return done.returncode, done.stdout


def answer(**vulnerable) -> str:
    packages = [
        {"name": name, "version": "1.0", "vulns": [{"id": own, "fix_versions": ["2.0"]}] if own else []}
        for name, own in vulnerable.items()
    ]
    return json.dumps({"dependencies": packages, "fixes": []})


@pytest.mark.parametrize(
    ("found", "code", "expected"),
    [
        ({"jax": "", "urllib3": ""}, 0, "2 packages looked at"),
        ({"jax": "", "urllib3": "PYSEC-1"}, 0, "urllib3 1.0 (not ours): PYSEC-1, fixed in 2.0"),
        ({"JAX": "PYSEC-2", "urllib3": ""}, 1, "JAX 1.0 (install_requires): PYSEC-2"),
        ({"huggingface-hub": "PYSEC-3"}, 1, "huggingface-hub 1.0 (install_requires)"),
    ],
)
def test_findings(found, code, expected, tmp_path):
    ended, output = audited(tmp_path, answer(**found), 1)
    assert ended == code and expected in output
    assert (tmp_path / "asked").read_text() == "jax==0.10.2\nurllib3==1.0\n"


@pytest.mark.parametrize("said", ["", "not JSON", "{}"])
def test_no_answer_is_no_failure(said, tmp_path):
    assert audited(tmp_path, said, 1) == (0, "audit: no answer (offline)\n")


def test_no_tool_is_no_failure(tmp_path):
    code, output = run({"PATH": str(tmp_path)})
    assert code == 0 and "pip-audit is not here" in output
