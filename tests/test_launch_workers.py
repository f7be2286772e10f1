"""launch/worker.sh, which launch/run.sh has run on every worker: installing, starting, and how a run ended there."""

import os
import signal
import subprocess

from tests.launch_helpers import Cloud, commit_all, make_checkout
from tests.test_launch_pods import checkout as checkout
from tests.test_launch_pods import cloud as cloud  # fixtures
from tests.test_launch_pods import commit, news, wait_for
from tests.test_launch_pods import pod as pod


def worker(cloud: Cloud, *arguments: str) -> subprocess.Popen:
    """launch/worker.sh on worker 0, as ssh would run it."""
    home = cloud.folder / "w0"
    environment = {"PATH": f"{cloud.folder}/bin:/usr/bin:/bin", "CLOUD": str(cloud.folder), "WORKER": "0"}
    program = home / "scpo-run" / commit(cloud.checkout) / "launch" / "worker.sh"
    command, pipe = ["bash", str(program), *arguments], subprocess.PIPE
    return subprocess.Popen(command, env=environment | {"HOME": str(home)}, stdout=pipe, stderr=pipe, text=True)


def test_a_worker_that_cannot_install_gets_three_chances(pod):
    pod.plays(pip_1=["1", "1"])
    assert pod.run(type="v5litepod-16").returncode == 0
    assert [line.split()[1] for line in pod.read("began")] == ["0", "1"]


def test_a_worker_that_never_installs(pod):
    pod.plays(pip_1=["1"] * 20)
    done = pod.run(type="v5litepod-16")
    assert done.returncode == 1 and not pod.read("began")
    assert "Command execution on worker 1 failed" in done.stderr and "pip says 1" in done.stderr
    assert "the run failed 3 times in a row, at last: it did not start" in done.stderr.splitlines()[-1]


def test_it_says_which_worker_was_lost(pod):
    pod.plays(scpo_0=["1", "killed", "0"], scpo_1=["all killed", "134", "0"])
    done = pod.run(type="v5litepod-16")
    assert done.returncode == 0, done.stderr
    assert [line for line in news(done) if line.startswith("worker 0")] == [
        "worker 0 ended with 1, worker 1 was lost: killed with all around it, or started anew",
        "worker 0 was lost: killed by SIGKILL, worker 1 aborted itself (134)",
    ]


def test_a_worker_that_was_rebooted(cloud):
    """What runs there now under the number of the run is not the run."""
    cloud.plays(scpo_0=["forever", "0"])
    process = cloud.popen("--tpu=pod", "--zone=z", "--type=v5litepod-8", "configs/demo.py", "gs://bucket/run")
    pid = cloud.folder / "w0" / "scpo-run" / "run" / "pid"
    wait_for(lambda: len(cloud.read("began")) == 1 and pid.exists(), process)
    process.kill()
    process.communicate()
    os.killpg(int(pid.read_text()), signal.SIGKILL)
    with subprocess.Popen(["/bin/sleep", "300"]) as other:
        pid.write_text(str(other.pid))
        done = cloud.run()
        other.kill()
    assert done.returncode == 0 and len(cloud.read("began")) == 2, done.stderr


def test_torch_where_the_model_has_only_a_bin(cloud):
    (cloud.folder / "torch").write_text("torch\n")
    assert cloud.run("--config.model.name_or_path=x y").returncode == 2, "flags of the run come last"
    assert cloud.launch("--tpu=p", "--zone=z", "--type=v4-8", "configs/demo.py", "w", "--config.seed=1").returncode == 0
    asked, installed = cloud.read("python.0")[1:]
    assert asked.endswith("launch/needs_torch.py --config=configs/demo.py --config.seed=1")
    assert installed == "-m pip install --quiet torch>=2.4 --index-url=https://download.pytorch.org/whl/cpu"


def test_two_installations_take_turns(cloud):
    """The connection drops, the first goes on without it, and gcloud starts a second."""
    assert cloud.run().returncode == 0
    (cloud.folder / "bin" / "venv-python").write_text(
        "#!/bin/sh\nmkdir $HOME/busy && /bin/sleep 0.5 && rmdir $HOME/busy\n"
    )
    (cloud.folder / "w0" / "scpo-run" / "venv" / "bin" / "python").unlink()
    name = commit(cloud.checkout)
    both = [worker(cloud, "install", name, "1", "configs/demo.py") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err


def test_what_is_started_is_what_was_installed(cloud):
    """Another launch may have installed its own commit in between."""
    assert cloud.run().returncode == 0
    link = cloud.folder / "w0" / "scpo-run" / "current"
    link.unlink()
    link.symlink_to("another")
    process = worker(cloud, "start", commit(cloud.checkout), "1", "configs/demo.py", "gs://bucket/run")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "another launch has just installed another commit here" in err
    assert len(cloud.read("began")) == 1


def test_uv_where_no_python_is_new_enough(cloud):
    (cloud.folder / "old").touch()
    for minor in range(11, 15):
        (cloud.folder / "bin" / f"python3.{minor}").symlink_to("python3")
    assert cloud.run().returncode == 0
    uv = f"{cloud.folder}/w0/scpo-run/venv-uv"
    calls = [line for line in cloud.read("python3.calls") if not line.startswith("-c")]
    venv = f"venv --quiet --seed --python=3.12 {cloud.folder}/w0/scpo-run/venv"
    assert calls == [f"-m pip install --quiet --upgrade --target {uv} uv", venv]


def test_crashes_far_apart_are_not_in_a_row(tmp_path):
    mine = make_checkout(tmp_path / "mine")
    job = mine / "launch" / "job.sh"
    job.write_text(job.read_text().replace("SECONDS_OF_PROGRESS=3600", "SECONDS_OF_PROGRESS=0"))
    commit_all(mine)
    (tmp_path / "cloud").mkdir()
    cloud = Cloud(tmp_path / "cloud", mine)
    cloud.plays(scpo_0=["1", "137", "1", "1", "0"])
    assert cloud.run().returncode == 0 and len(cloud.read("began")) == 5


def test_stop_before_anything_is_installed(cloud):
    (cloud.folder / "node").write_text("READY\n")
    done = cloud.launch("stop", "pod", "--zone=z")
    assert done.returncode == 0 and "the slice is still there" in done.stderr
