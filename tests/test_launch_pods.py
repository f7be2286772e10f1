"""launch/run.sh on TPU slices, with a stand-in for gcloud: what it asks for, and what it does when things go wrong."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch_helpers import ROOT, Cloud, make_checkout

STATE = "compute tpus tpu-vm describe pod --zone=z --format=value(state)"
CREATE = "compute tpus tpu-vm create pod --version=v2-alpha-tpuv5-lite --zone=z --accelerator-type=v5litepod-8 --quiet"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def cloud(tmp_path, checkout):
    shutil.rmtree(checkout / "runs", ignore_errors=True)
    return Cloud(tmp_path, checkout)


@pytest.fixture
def pod(tmp_path, checkout):
    """A slice of two workers."""
    shutil.rmtree(checkout / "runs", ignore_errors=True)
    return Cloud(tmp_path, checkout, workers=2)


def commit(checkout) -> str:
    return subprocess.check_output(["git", "-C", str(checkout), "rev-parse", "HEAD"], text=True).strip()


def news(done: subprocess.CompletedProcess) -> list[str]:
    return [line.removeprefix("launch: ") for line in done.stderr.splitlines() if line.startswith("launch: ")]


def test_the_same_command_runs_on_all_workers(pod):
    """Its arguments arrive as they were given; the log of worker 0 is shown, those of all are kept."""
    flags = ['--config.data.groups=Côte d\'Ivoire,"South Africa"', "--config.model.name_or_path=a $HOME/b", "--force"]
    done = pod.launch(
        "--tpu=pod", "--zone=z", "--type=v5litepod-16", "--spot", "configs/a b.py", "gs://bucket/a run", *flags
    )
    assert done.returncode == 0, done.stderr
    for worker in (0, 1):
        expected = ["run", "--config=configs/a b.py", "--workdir=gs://bucket/a run", *flags]
        assert pod.read(f"args.{worker}") == expected
        log = (pod.checkout / "runs" / "launch" / "pod" / f"worker-{worker}.log").read_text().splitlines()
        assert log[1:] == [f"worker {worker} of {commit(pod.checkout)} begins: 0", f"worker {worker} ends"]
    shown = done.stdout.splitlines()
    assert shown.count("worker 0 ends") == 1 and "worker 1 ends" not in shown
    assert len(pod.calls("create", "--spot", "--accelerator-type=v5litepod-16")) == 1
    installed = f"{pod.folder}/w1/scpo-run/{commit(pod.checkout)}[tpu]"
    assert pod.read("python.1")[0] == f"-m pip install --quiet --editable {installed}"
    assert not any("torch>=2.4" in line for line in pod.read("python.1"))


def test_dry_run_shows_every_command_and_does_nothing(cloud):
    done = cloud.run("--dry-run", "--queued")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ gcloud")]
    assert [" ".join(line.split()[3:6]) for line in lines] == [
        "tpus tpu-vm describe", "tpus queued-resources describe", "tpus queued-resources create", "tpus tpu-vm scp",
        *["tpus tpu-vm ssh"] * 4, "tpus tpu-vm scp",
    ]  # fmt: skip
    assert "start" in lines[6] and "--workdir" not in lines[6] and "gs://bucket/run" in lines[6]
    assert not cloud.calls() and not (cloud.checkout / "runs").exists()


def test_it_waits_for_room_and_comes_back_after_being_taken_away(cloud):
    cloud.plays(
        refusals=["There is no more capacity in the zone", "RESOURCE_EXHAUSTED: try later"],
        scpo_0=["preempted", "75", "preempted", "0"],
    )
    done = cloud.run("--spot")
    assert done.returncode == 0, done.stderr
    assert len(cloud.calls("create")) == 5 and len(cloud.calls("delete")) == 2
    assert [line.split(": ")[1] for line in cloud.read("began")] == ["preempted", "75", "preempted", "0"]
    assert news(done).count("pod was taken away") == 2
    assert news(done).count("not now; asking again in 60 s") == 2
    logs = [line for line in cloud.calls("scp") if "scpo-run/run/log" in line]
    assert (
        len(logs) == 2
    )  # after 75 and 0: of a slice that was taken away nothing is asked, each call would take minutes
    assert "the run ended: 75; starting it again" in news(done)


def test_no_connection_waits_for_ever(cloud):
    assert cloud.run(workdir="here").returncode == 0
    (cloud.folder / "w0" / "scpo-run" / "here").mkdir()
    assert cloud.launch("fetch", "pod").returncode == 0
    for program in ("ssh", "scp"):
        limits = [f"--{program}-flag=-oConnectTimeout=20", f"--{program}-flag=-oServerAliveInterval=20"]
        assert cloud.calls(program) == cloud.calls(program, *limits) != []


def test_what_will_not_change_by_waiting_ends_it(cloud):
    cloud.plays(refusals=["Quota limit 'TPUV5sLitepod' has been exceeded. Limit: 0 (RESOURCE_EXHAUSTED)"])
    done = cloud.run()
    assert done.returncode == 1 and len(cloud.calls("create")) == 1
    assert done.stderr.splitlines()[-2:] == [
        "ERROR: Quota limit 'TPUV5sLitepod' has been exceeded. Limit: 0 (RESOURCE_EXHAUSTED)",
        "launch/run.sh: error: pod cannot be made, gcloud says why",
    ]


def test_a_slice_that_somebody_deleted_is_not_made_again(cloud):
    cloud.plays(scpo_0=["75"], states=["READY", "READY", "DELETING"])
    process = cloud.popen("--tpu=pod", "--zone=z", "--type=v5litepod-8", "configs/demo.py", "gs://b/r")
    while "DELETING" not in (node := cloud.read("node")):
        assert process.poll() is None, node
        time.sleep(0.01)
    (cloud.folder / "node").unlink()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "was deleted by somebody else: not made again" in err
    assert not cloud.calls("create")


def test_no_line_of_the_log_is_lost_or_shown_twice_when_ssh_drops(cloud):
    cloud.plays(ssh=["", "drop", "", "", "drop", "cut", "cut", "drop"])
    done = cloud.run()
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if line.startswith("worker 0")]
    assert shown == [f"worker 0 of {commit(cloud.checkout)} begins: 0", "worker 0 ends"]
    assert len(cloud.read("began")) == 1


@pytest.mark.parametrize(
    ("codes", "expected", "started"), [(["2"], 2, 1), (["1", "134", "137"], 1, 3), (["1", "0"], 0, 2)]
)
def test_how_often_a_failing_run_is_started(codes, expected, started, cloud):
    cloud.plays(scpo_0=codes)
    done = cloud.run()
    assert done.returncode == expected, done.stderr
    assert len(cloud.read("began")) == started
    if expected == 1:
        assert "the run failed 3 times in a row, at last: 137" in done.stderr


def test_queued_resources(cloud):
    cloud.plays(line=["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "SUSPENDED", "ACCEPTED", "ACTIVE"])
    cloud.plays(scpo_0=["preempted", "0"])
    done = cloud.run("--queued", "--spot")
    assert done.returncode == 0, done.stderr
    assert [line.split()[4] for line in cloud.calls("queued-resources", "--node-id=pod", "--spot")] == ["pod"] * 3
    assert len(cloud.calls("queued-resources", "delete", "--force")) == 2 and not cloud.calls("tpu-vm", "delete")
    assert "pod is in line: WAITING_FOR_RESOURCES" in news(done)


def wait_for(condition, process=None, seconds=240):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_the_same_command_shows_a_run_again_another_is_refused_and_stop_ends_it(pod):
    """As a user whose laptop slept: the launcher is gone, the run is not."""
    pod.plays(scpo_0=["forever"], scpo_1=["forever"])
    arguments = ("--tpu=pod", "--zone=z", "--type=v5litepod-16", "configs/demo.py", "gs://b/r")
    first = pod.popen(*arguments)
    wait_for(lambda: len(pod.read("began")) == 2, first)
    first.terminate()
    first.communicate()
    other = pod.run(type="v5litepod-16")
    assert other.returncode == 2 and "another run is going on here" in other.stderr
    polls = len(pod.calls("--worker=0"))
    again = pod.popen(*arguments)
    wait_for(lambda: len(pod.calls("--worker=0")) >= polls + 2, again)
    assert pod.launch("stop", "pod").returncode == 0
    out, err = again.communicate(timeout=300)
    assert again.returncode == 130 and "the run was stopped" in err
    assert "begins: forever" in out and "saved" in out
    assert len(pod.read("began")) == 2
    logs = [pod.folder / f"w{i}" / "scpo-run" / "run" / "log" for i in (0, 1)]
    assert all("saved" in log.read_text() for log in logs)


def test_sigterm_reaches_the_run_which_is_started_again(cloud):
    """As a machine tells all its processes that it is about to be taken away, one after the other."""
    cloud.plays(scpo_0=["forever", "0"])
    process = cloud.popen("--tpu=pod", "--zone=z", "--type=v5litepod-8", "configs/demo.py", "gs://b/r")
    pid = cloud.folder / "w0" / "scpo-run" / "run" / "pid"
    wait_for(lambda: len(cloud.read("began")) == 1 and pid.exists(), process)
    os.kill(int(pid.read_text()), signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "saved" in out
    assert "launch: the run ended: 75; starting it again" in err.splitlines()
    assert [line.split(": ")[1] for line in cloud.read("began")] == ["forever", "0"]


def test_ctrl_c_ends_only_the_showing(cloud):
    cloud.plays(scpo_0=["forever"])
    process = cloud.popen("--tpu=pod", "--zone=z", "--type=v5litepod-8", "configs/demo.py", "gs://b/r")
    wait_for(lambda: len(cloud.read("began")) == 1, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.splitlines()[-1].startswith("launch: what runs on pod goes on; ")
    assert cloud.run(workdir="gs://b/r").returncode == 0 and len(cloud.read("began")) == 1


def test_sigterm_on_this_machine(cloud):
    cloud.plays(scpo_here=["forever"])
    process = cloud.popen("--local", "configs/demo.py", "runs/x")
    wait_for(lambda: len(cloud.read("began")) == 1, process)
    process.terminate()
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 75 and "saved" in out


def test_fetch_and_delete(cloud):
    assert cloud.run(workdir="here").returncode == 0
    assert cloud.read("args.0")[2] == f"--workdir={cloud.folder}/w0/scpo-run/here"
    (cloud.folder / "w0" / "scpo-run" / "here").mkdir()
    (cloud.folder / "w0" / "scpo-run" / "here" / "report.html").write_text("found")
    assert cloud.launch("fetch", "pod", str(cloud.folder / "mine")).returncode == 0
    assert (cloud.folder / "mine" / "here" / "report.html").read_text() == "found"
    assert cloud.launch("delete", "pod").returncode == 0 and not (cloud.folder / "node").exists()
    gone = cloud.launch("delete", "pod")
    assert gone.returncode == 0 and "there is no pod" in gone.stderr
    assert len(cloud.calls("delete")) == 1
    done = cloud.launch("fetch", "pod", "--dry-run", "--zone=other")
    assert done.returncode == 0 and "--zone=other" in done.stdout


def test_fetch_from_a_bucket(cloud):
    assert cloud.run().returncode == 0
    assert cloud.launch("fetch", "pod").returncode == 0
    folder = f"{cloud.checkout}/runs/pod"
    rsync = "storage rsync --recursive --exclude=^checkpoints/training/.*"
    assert cloud.calls("rsync") == [f"{rsync} gs://bucket/run {folder}"]


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("1", 1), ("2", 2)])
def test_preflight_comes_first(code, expected, cloud):
    cloud.plays(scpo_here=[code])
    done = cloud.launch(
        "--tpu=pod",
        "--zone=z",
        "--type=v5p-32",
        "--preflight",
        "configs/demo.py",
        "gs://b/r",
        "--config.seed=3",
        "--force",
    )
    assert done.returncode == expected, done.stderr
    config = f"--config={cloud.checkout}/configs/demo.py"
    assert cloud.read("args.here") == ["preflight", config, "--topology=v5p:2x2x4", "--config.seed=3"]
    assert bool(cloud.calls()) == (code == "0")
    if code == "1":
        assert done.stderr.endswith("launch/run.sh: error: it does not fit on v5p-32: not launched\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tpu=pod", "--zone=z", "--type=v5litepod-7"), "--type=v5litepod-7: known are"),
        (("--tpu=pod", "--zone=z", "--type=v9-8"), "--type=v9-8: known are"),
        (("--tpu=pod", "--zone=z"), "--type is missing"),
        (("--tpu=pod", "--type=v4-8"), "--zone is missing"),
        (("--tpu=Pod/..", "--zone=z", "--type=v4-8"), "is no name of a slice"),
        (("--zone=z", "--type=v4-8"), "where? --tpu=NAME"),
        (("--local", "--spot"), "--local takes no flag of a slice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_use(arguments, said, cloud):
    done = cloud.launch(*arguments, "configs/demo.py", "gs://bucket/run")
    assert done.returncode == 2 and done.stdout == "" and not cloud.calls()
    assert done.stderr.startswith("launch/run.sh: error: ") and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("type", "more"), [("v4-8", "--spot"), ("v5litepod-16", "--queued")])
def test_a_workdir_that_would_be_lost_or_torn_is_refused(type, more, cloud):
    done = cloud.run(more, type=type, workdir="runs/x")
    assert done.returncode == 2 and "WORKDIR is gs://..." in done.stderr and not cloud.calls()


def test_a_commit_is_launched(cloud, tmp_path):
    checkout = make_checkout(tmp_path / "mine")
    own = Cloud(tmp_path / "cloud", checkout) if (tmp_path / "cloud").mkdir() is None else None
    (checkout / "configs" / "new.py").write_text("")
    done = own.launch("--tpu=pod", "--zone=z", "--type=v4-8", "configs/new.py", "w")
    assert done.returncode == 2 and "configs/new.py is not in the commit" in done.stderr
    (checkout / "configs" / "demo.py").write_text("# changed\n")
    done = own.run(workdir="w")
    assert done.returncode == 2 and "changes that are not committed" in done.stderr
    assert not own.calls()


def test_gcloud_that_does_not_answer(cloud):
    cloud.plays(states=["offline"] * 9)
    done = cloud.run()
    assert done.returncode == 1 and "gcloud does not answer for pod" in done.stderr
    assert done.stderr.count("ERROR: no route to host") == 5


def test_shellcheck():
    program = shutil.which("shellcheck", path=f"{sys.prefix}/bin:/usr/local/bin:/usr/bin")
    if program is None:
        pytest.skip("no shellcheck (pip install -e '.[test]')")
    command = [program, "--external-sources", "--check-sourced", "launch/run.sh", "launch/worker.sh"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
