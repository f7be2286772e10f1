"""Trainings that are killed at random moments and go on end bitwise as one that nothing disturbed; a table, exit code 1
where one does not.

    python -m tests.faults.kills --kills=20 --signal=KILL,TERM

Half of the moments follow the beginning of a save, which goes on in the background. What SIGTERM ends has to end within
30 s with exit code 75 and, in a training, with its state saved, at which the next attempt begins. Each attempt is a
process of its own, forked from this one, in which everything has been imported.
"""

import argparse
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings

import jax
import numpy as np

from scpo_jax import checkpoint, preemption  # noqa: F401: stages are forked with all that they import
from scpo_jax import main as scpo
from tests.run_helpers import World, read_rows

STEPS, EVERY = 16, 2
STAGES = "prepare,global,score,select"
FLAGS = [
    "--config.scpo.methods=scpo,full",
    f"--config.train.max_steps={STEPS}",
    f"--config.checkpoint.every_steps={EVERY}",
]
SECONDS_TO_END = 30
SECONDS_AT_MOST = 900  # of an attempt, on a busy machine
SAVED, RESUMED = r"the state after (\d+) steps is saved", r"goes on after (\d+) steps"


class Attempt:
    """A process of `scpo run` in a workdir."""

    def __init__(self, world: World, workdir: pathlib.Path, *flags: str):
        self.log = workdir.parent / f"{workdir.name}.log"
        command = ["scpo", "run", f"--config={world.config}", f"--workdir={workdir}", *FLAGS, *flags]
        self.began, self.code = time.monotonic(), None
        self._pid = os.fork()
        if not self._pid:
            run_here(command, self.log)

    def ended(self) -> bool:
        """Whether it has; `code` is then its exit code."""
        if self.code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self) -> float:
        """Waits for its end; seconds since it began."""
        while not self.ended():
            if time.monotonic() - self.began > SECONDS_AT_MOST:
                self.send(signal.SIGKILL)
            time.sleep(0.005)
        return time.monotonic() - self.began

    def send(self, which: signal.Signals) -> None:
        os.kill(self._pid, which)

    def steps(self, pattern: str) -> list[int]:
        """The numbers of steps in what it said."""
        return [int(found) for found in re.findall(pattern, self.log.read_text())]


def run_here(command: list[str], log: pathlib.Path) -> None:
    """Becomes `scpo`, and ends."""
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        preemption.listen()
        code = scpo.main(command)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for_moment(attempt: Attempt, workdir: pathlib.Path, rng: np.random.Generator, seconds: float) -> str:
    """Waits for a random moment of an attempt that takes so many seconds; what moment it is."""
    kind, step = (
        rng.choice(["any time", "in a training", "in a save", "in a save"]),
        EVERY * int(rng.integers(1, STEPS // EVERY)),
    )
    method, pause = rng.choice(["scpo", "full"]), rng.uniform(0, 1)
    if kind == "any time":
        limit = attempt.began + pause * seconds
        while time.monotonic() < limit and not attempt.ended():
            time.sleep(0.002)
        return f"{pause * seconds:.1f} s after its start"
    wanted = f"{method}-*/{step}" if kind == "in a training" else f"{method}-*/{step}.orbax-checkpoint-tmp*"
    later = f"{method}-*/{step}"
    states = workdir / "checkpoints" / "training"
    while not any(states.glob(wanted)) and not any(states.glob(later)) and not attempt.ended():
        time.sleep(0.0005)
    pause *= 0.1 if kind == "in a save" else 0.3
    time.sleep(pause)
    return f"{1000 * pause:.0f} ms after {'the beginning of the save' if kind == 'in a save' else 'the save'} of {method} {step}"


def trial(world: World, prepared: pathlib.Path, workdir: pathlib.Path, which: str, rng, seconds: float) -> list[str]:
    """One kill, and going on to the end; prints a row of the table, returns what is wrong."""
    shutil.copytree(prepared, workdir)
    killed, wrong = Attempt(world, workdir), []
    moment = wait_for_moment(killed, workdir, rng, seconds)
    if killed.ended():
        return ["too late"]
    told = time.monotonic()
    killed.send(signal.Signals[f"SIG{which}"])
    killed.wait()
    took = time.monotonic() - told
    saved = killed.steps(SAVED)
    if killed.code == 0:
        return ["too late"]
    if killed.code != (preemption.CODE if which == "TERM" else -signal.SIGKILL):
        wrong.append(f"exit code {killed.code}")
    if which == "TERM" and took > SECONDS_TO_END:
        wrong.append(f"it took {took:.0f} s to end")
    shutil.copy(killed.log, f"{killed.log}.killed")
    resumed = Attempt(world, workdir)
    resumed.wait()
    begun = resumed.steps(RESUMED)
    if resumed.code:
        wrong.append(f"going on: exit code {resumed.code}: {resumed.log.read_text()[-300:]}")
    if saved and saved != begun[:1]:
        wrong.append(f"saved after {saved} steps, resumed after {begun}")
    if "damaged" in resumed.log.read_text():
        wrong.append("a state was damaged")
    ended = f"{took:5.1f} s, {killed.code:4}"
    print(
        f"{which:5} {moment:52} {ended:14} {str(saved[0] if saved else '-'):>5} {str(begun[0] if begun else '-'):>7}  ",
        end="",
    )
    print("; ".join(wrong) or "ended", flush=True)
    return wrong


def differences(workdir: pathlib.Path, straight: pathlib.Path) -> list[str]:
    """What of a run is not bitwise that of another."""
    wrong, folders = [], [path.parent.relative_to(straight) for path in straight.glob("checkpoints/**/params")]
    found = [path.parent.relative_to(workdir) for path in workdir.glob("checkpoints/**/params")]
    if sorted(found) != sorted(folders):
        wrong.append(f"other checkpoints: {sorted(map(str, found))}")
    for folder in folders:
        ours, theirs = (jax.tree.leaves(checkpoint.load(run / folder).params) for run in (workdir, straight))
        if not all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
            wrong.append(f"{folder} has other parameters")
    steps = [
        sorted((r["training"], r["step"]) for r in read_rows(run / "metrics.jsonl")) for run in (workdir, straight)
    ]
    if steps[0] != steps[1]:
        wrong.append("metrics.jsonl has other steps")
    rest = [path for path in (workdir / "checkpoints").glob("**/*") if "orbax-checkpoint-tmp" in path.name]
    if rest or (workdir / "checkpoints" / "training").exists():
        wrong.append(f"left behind: {rest or 'training states'}")
    return wrong


def run(folder: pathlib.Path, kills: int, signals: list[str], seed: int) -> bool:
    """`kills` trials with each signal; whether all ended as they have to."""
    world, rng = World(folder), np.random.default_rng(seed)
    prepared, straight = folder / "prepared", folder / "straight"
    if Attempt(world, prepared, f"--stages={STAGES}").wait() is None or not prepared.exists():
        raise SystemExit(f"the run could not be prepared, see {prepared}.log")
    shutil.copytree(prepared, straight)
    first = Attempt(world, straight)
    first.wait()
    assert first.code == 0, first.log.read_text()
    shutil.copytree(prepared, folder / "again")
    seconds = Attempt(world, folder / "again").wait()  # all is compiled now
    print(f"undisturbed: {seconds:.1f} s, {STEPS} steps of two lots of RMs, a state every {EVERY}; seed {seed}")
    print(f"{'':5} {'killed':52} {'ended':14} {'saved':>5} {'resumed':>7}")
    runs, bad = [("", folder / "again")], 0
    for which in signals:
        done = 0
        while done < kills:
            workdir = folder / f"{which}-{len(runs)}"
            wrong = trial(world, prepared, workdir, which, rng, seconds)
            runs.append((which, workdir))
            done, bad = done + (wrong != ["too late"]), bad + bool(wrong and wrong != ["too late"])
    equal = 0
    for which, workdir in runs:
        wrong = differences(workdir, straight)
        equal += not wrong
        if wrong:
            print(f"{workdir.name}: {'; '.join(wrong)}")
    print(f"{equal} of {len(runs)} runs bitwise equal to the undisturbed one; {bad} ended otherwise than they have to")
    return equal == len(runs) and not bad


def main() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--kills", type=int, default=20, help="of each signal")
    flags.add_argument("--signal", default="KILL,TERM")
    flags.add_argument("--seed", type=int, default=0)
    given = flags.parse_args()
    warnings.filterwarnings("ignore", message=".*fork")
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        return 0 if run(pathlib.Path(folder), given.kills, given.signal.split(","), given.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
