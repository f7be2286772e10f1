"""The launcher's loop over a pod: a worker is lost, then the other; the launcher says which, and the result is right.

    pytest -n 0 -s tests/faults/pod.py

Two processes over loopback stand for the workers, each with four fake devices and the real scpo; gcloud is a stand-in.
Minutes on two cores, and so no part of the suite.
"""

import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import time

import jax
import numpy as np
import pytest

from scpo_jax import checkpoint
from tests.launch_helpers import ROOT, Cloud, commit_all, make_checkout
from tests.test_distributed import LIMIT, both, free_port, metrics_of, run_arguments, wait_for_state
from tests.test_distributed import world as world  # a fixture

# what a TPU pod tells jax by itself, and the bucket that all workers see
SCPO = """
echo $$ >"$CLOUD/pid.$WORKER"
export XLA_FLAGS=--xla_force_host_platform_device_count=4 JAX_PLATFORMS=cpu CI=true
exec @PYTHON@ -m scpo_jax.main "${@/gs:\\/\\//$CLOUD/}" --coordinator=127.0.0.1:@PORT@ --processes=2 --process="$WORKER"
"""
SLEEP = '[ "$1" -le 1 ] || set -- 1; exec /bin/sleep "$1"\n'
FLAGS = [
    "--config.train.max_steps=16", "--config.checkpoint.every_steps=1", "--config.distributed.heartbeat_seconds=20",
    "--stages=prepare,global,score,select,train", "--config.mesh.data=4", "--config.mesh.group=2",
]  # fmt: skip
SECONDS_TO_END = 60


@pytest.fixture
def pod(world, tmp_path):
    """A slice of two workers, and a checkout with all of scpo and the config of the world."""
    checkout = make_checkout(tmp_path / "checkout")
    shutil.copytree(ROOT / "scpo_jax", checkout / "scpo_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(world.config, checkout / "configs" / "world.py")
    commit_all(checkout)
    (tmp_path / "cloud").mkdir()
    scpo = SCPO.replace("@PYTHON@", sys.executable).replace("@PORT@", str(free_port()))
    return Cloud(tmp_path / "cloud", checkout, workers=2, scpo=scpo, sleep=SLEEP)


def parameters_of(workdir: pathlib.Path) -> dict[str, list]:
    """SLUG -> the arrays of its RM."""
    return {
        folder.name: jax.tree.leaves(checkpoint.load(folder).params)
        for folder in sorted((workdir / "checkpoints" / "full").iterdir())
    }


def kill(pod: Cloud, process, workdir: pathlib.Path, worker: int, step: int) -> float:
    """Kills a worker's scpo once a state after so many steps stands; seconds until the other's has ended."""
    wait_for_state(workdir, step, [process])
    pids = [int((pod.folder / f"pid.{i}").read_text()) for i in (0, 1)]
    os.kill(pids[worker], signal.SIGKILL)
    began = time.monotonic()
    while is_scpo(pids[1 - worker]):
        assert time.monotonic() - began < SECONDS_TO_END
        time.sleep(0.05)
    return time.monotonic() - began


def is_scpo(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return b"scpo_jax.main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_pod_that_loses_its_workers_gives_what_an_undisturbed_one_gives(pod, world, tmp_path, monkeypatch):
    named = f"--config.model.name_or_path={world.model}"
    flags = [flag for flag in run_arguments(world, "", *FLAGS)[4:] if flag != named]
    where = ("--tpu=pod", "--zone=z", "--type=v5litepod-16")
    process = pod.popen(*where, "configs/world.py", "gs://bucket/run", named, *flags)
    told = {}
    reader = threading.Thread(target=lambda: told.update(zip(("out", "err"), process.communicate(), strict=True)))
    reader.start()
    workdir = pod.folder / "bucket" / "run"
    try:
        for worker, step in ((1, 3), (0, 8)):
            seconds = kill(pod, process, workdir, worker, step)
            print(f"worker {worker} killed after step {step}: the other's process ended after {seconds:.1f} s")
        reader.join(LIMIT)
    finally:
        process.kill()
        pod.launch("stop", "pod")
    said = [line.removeprefix("launch: ") for line in told["err"].splitlines() if line.startswith("launch: ")]
    print(*said, sep="\n")
    assert process.returncode == 0, told["err"] + told["out"]
    assert [line for line in said if "was lost" in line] == [
        "worker 0 ended with 1, worker 1 was lost: killed by SIGKILL",
        "worker 0 was lost: killed by SIGKILL, worker 1 ended with 1",
    ]
    assert sum(line.endswith("starting it again") for line in said) == 2
    went_on = [int(step) for step in re.findall(r"goes on after (\d+) steps", told["out"])]
    assert len(went_on) >= 2 and went_on[0] >= 3 and went_on[-1] >= 8, told["out"]
    logs = [(pod.checkout / "runs" / "launch" / "pod" / f"worker-{i}.log").read_text() for i in (0, 1)]
    assert "process 1 is lost" in logs[0] and "process 0 is lost" in logs[1]
    undisturbed = tmp_path / "undisturbed"
    for name, value in {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""}.items():
        monkeypatch.setenv(name, value)  # the pod's processes have nothing of the tests' settings
    ended = both(*run_arguments(world, undisturbed, *FLAGS))
    assert [code for code, _ in ended] == [0, 0], ended
    ours, theirs = metrics_of(workdir), metrics_of(undisturbed)
    assert ours == theirs and len(ours) == 3 * 17
    ours, theirs = parameters_of(workdir), parameters_of(undisturbed)
    assert ours.keys() == theirs.keys()
    for group, arrays in theirs.items():
        for own, other in zip(ours[group], arrays, strict=True):
            np.testing.assert_array_equal(own, other, err_msg=group)
