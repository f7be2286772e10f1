"""Trainings that are killed at random moments go on to what one gives that nothing disturbs, bitwise.

    python -m tests.faults.kills --kills=20 --signal=KILL,TERM

Half of the moments follow the beginning of a save, which is written in the background. What gets SIGTERM has to end
within 30 s with exit code 75 and, in a training, with its state saved, which the next attempt has to begin with. Each
attempt is a process of its own, forked from this one, where all has been imported. A line for each kill; exit code 1
where something is not as it has to be.
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

from scpo_jax import checkpoint, main, preemption
from scpo_jax import pipeline as _pipeline  # noqa: F401 (imported once for all attempts)
from tests.run_helpers import World, read_rows

STEPS, EVERY = 12, 2
BEFORE = "prepare,global,score,select"
FLAGS = (
    "--config.scpo.methods=scpo", f"--config.train.max_steps={STEPS}", f"--config.checkpoint.every_steps={EVERY}",
)  # fmt: skip
SECONDS_TO_END = 30
SECONDS_AT_MOST = 900  # of an attempt, on a busy machine
TOO_LATE = ["it had ended before"]


class Attempt:
    """A process of `scpo run` in a workdir."""

    def __init__(self, world: World, workdir: pathlib.Path, stages: str = "train"):
        self._log = workdir.parent / f"{workdir.name}.log"
        command = ["scpo", "run", f"--config={world.config}", f"--workdir={workdir}", f"--stages={stages}", *FLAGS]
        self.began, self.code = time.monotonic(), None
        self._pid = os.fork()
        if not self._pid:
            become_scpo(command, self._log)

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
                self.send("KILL")
            time.sleep(0.005)
        return time.monotonic() - self.began

    def send(self, which: str) -> None:
        """Sends it a signal, unless it has ended."""
        if not self.ended():
            os.kill(self._pid, signal.Signals[f"SIG{which}"])

    def said(self) -> str:
        """What it has said."""
        return self._log.read_text()

    def steps(self, words: str) -> list[int]:
        """The numbers of steps that it has said with these words."""
        return [int(found) for found in re.findall(words.replace("N", r"(\d+)"), self.said())]


def become_scpo(command: list[str], log: pathlib.Path) -> None:
    """Runs a command as the console script does, writes to a file what it says, and ends."""
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1), os.dup2(file, 2)
        preemption.listen()
        code = main.main(command)
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for_moment(attempt: Attempt, workdir: pathlib.Path, rng: np.random.Generator, seconds: float) -> str:
    """Waits for a random moment of an attempt that takes so many seconds; what moment it is."""
    kind = rng.choice(["any time", "in a training", "in a save", "in a save"])
    step, share = EVERY * int(rng.integers(1, STEPS // EVERY)), rng.uniform(0, 1)
    if kind == "any time":
        limit = attempt.began + share * seconds
        while time.monotonic() < limit and not attempt.ended():
            time.sleep(0.002)
        return f"{share * seconds:.1f} s after its start"
    states, begun = workdir / "checkpoints" / "training", f"*/{step}.orbax-checkpoint-tmp*"
    wanted = (begun, f"*/{step}") if kind == "in a save" else (f"*/{step}",)
    while not any(any(states.glob(own)) for own in wanted) and not attempt.ended():
        time.sleep(0.0005)
    pause = share * (0.1 if kind == "in a save" else 0.3)
    time.sleep(pause)
    return f"{1000 * pause:.0f} ms after the {'beginning' if kind == 'in a save' else 'end'} of the save of step {step}"


def trial(world: World, workdir: pathlib.Path, which: str, rng: np.random.Generator, seconds: float) -> list[str]:
    """One kill, and going on to the end; prints a line, returns what is wrong."""
    killed = Attempt(world, workdir)
    moment = wait_for_moment(killed, workdir, rng, seconds)
    told = time.monotonic()
    killed.send(which)
    killed.wait()
    took, saved = time.monotonic() - told, killed.steps("the state after N steps is saved")
    if killed.code == 0:
        return TOO_LATE
    wrong = []
    if killed.code != (preemption.CODE if which == "TERM" else -signal.SIGKILL):
        wrong.append(f"exit code {killed.code}: {killed.said()[-300:]}")
    if which == "TERM" and took > SECONDS_TO_END:
        wrong.append(f"it took {took:.0f} s to end")
    resumed = Attempt(world, workdir)
    resumed.wait()
    begun = resumed.steps("goes on after N steps")
    if resumed.code:
        wrong.append(f"going on: exit code {resumed.code}: {resumed.said()[-300:]}")
    if saved and saved != begun:
        wrong.append(f"saved after {saved} steps, gone on with after {begun}")
    if "damaged" in resumed.said():
        wrong.append("a state was damaged")
    steps = [str(found[0]) if found else "-" for found in (saved, begun)]
    print(
        f"{which:4} {moment:50} {took:5.1f} s {killed.code:5} {steps[0]:>5} {steps[1]:>7}  {'; '.join(wrong)}",
        flush=True,
    )
    return wrong


def differences(workdir: pathlib.Path, straight: pathlib.Path) -> list[str]:
    """What of a run is not bitwise that of another."""
    wrong, runs = [], (workdir, straight)
    ours, theirs = (sorted(path.parent.relative_to(run) for path in run.glob("checkpoints/**/params")) for run in runs)
    if ours != theirs or len(ours) != 4:
        return [f"checkpoints {list(map(str, ours))}"]
    for folder in ours:
        a, b = (jax.tree.leaves(checkpoint.load(run / folder).params) for run in runs)
        if not all(map(np.array_equal, a, b)):
            wrong.append(f"{folder} has other parameters")
    steps = [sorted((row["training"], row["step"]) for row in read_rows(run / "metrics.jsonl")) for run in runs]
    if steps[0] != steps[1]:
        wrong.append("metrics.jsonl has other steps")
    rest = [str(path) for path in workdir.glob("checkpoints/**/*") if path.name.partition(".")[2].startswith("orbax")]
    if rest or (workdir / "checkpoints" / "training").exists():
        wrong.append(f"left behind: {rest or 'training states'}")
    return wrong


def run(folder: pathlib.Path, kills: int, signals: list[str], seed: int) -> bool:
    """`kills` trials with each signal; whether all ended as they have to."""
    world, rng = World(folder), np.random.default_rng(seed)
    prepared, straight = folder / "prepared", folder / "straight"

    def copy(workdir: pathlib.Path) -> pathlib.Path:
        return shutil.copytree(prepared, workdir)

    def undisturbed(attempt: Attempt) -> float:
        seconds = attempt.wait()
        if attempt.code:
            raise SystemExit(attempt.said())
        return seconds

    undisturbed(Attempt(world, prepared, BEFORE))
    seconds = undisturbed(Attempt(world, copy(straight)))
    print(f"undisturbed: {seconds:.1f} s; {STEPS} steps of three RMs at once, a state every {EVERY}; seed {seed}")
    print(f"{'':4} {'killed':50} {'ended':>7} {'code':>5} {'saved':>5} {'went on':>7}", flush=True)
    runs, bad = [], 0
    for which in signals:
        done = 0
        while done < kills:
            runs.append(copy(folder / f"{which}-{len(runs)}"))
            wrong = trial(world, runs[-1], which, rng, seconds)
            seconds *= 0.8 if wrong is TOO_LATE else 1  # the first one compiled
            done += wrong is not TOO_LATE
            bad += bool(wrong) and wrong is not TOO_LATE
    different = {workdir.name: wrong for workdir in runs if (wrong := differences(workdir, straight))}
    for name, wrong in different.items():
        print(f"{name}: {'; '.join(wrong)}")
    print(
        f"{len(runs) - len(different)} of {len(runs)} runs are bitwise the undisturbed one; {bad} ended as none should"
    )
    return not different and not bad


def command_line() -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--kills", type=int, default=20, help="of each signal")
    flags.add_argument("--signal", default="KILL,TERM")
    flags.add_argument("--seed", type=int, default=0)
    given = flags.parse_args()
    warnings.filterwarnings("ignore", message=".*fork")
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        if not jax.config.jax_compilation_cache_dir:
            jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        return 0 if run(pathlib.Path(folder), given.kills, given.signal.split(","), given.seed) else 1


if __name__ == "__main__":
    sys.exit(command_line())
