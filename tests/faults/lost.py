"""One process of two is lost: the other says which, and ends; started again they end as one process does.

    pytest -n 0 -s tests/faults/lost.py

A minute on two cores, and so no part of the suite, which has the parts of it in test_distributed.py.
"""

import re
import time

import jax
import numpy as np
import pytest

from tests.run_helpers import read_rows, scpo
from tests.test_distributed import metrics_of, run_arguments, scores_of, start_both, wait_for_state
from tests.test_distributed import world as world  # a fixture

FLAGS = [
    "--config.train.max_steps=16", "--config.checkpoint.every_steps=1", "--config.distributed.heartbeat_seconds=20",
    "--stages=prepare,global,score,select,train",
]  # fmt: skip
SECONDS_TO_END = 60


@pytest.fixture
def two(world, tmp_path):
    """(workdir, the arguments of both processes); what is left of them is ended."""
    return tmp_path / "two", run_arguments(
        world, tmp_path / "two", *FLAGS, "--config.mesh.data=4", "--config.mesh.group=2"
    )


def test_a_run_whose_processes_are_lost_is_that_of_one(world, two, tmp_path, capsys):
    workdir, arguments = two
    for lost, step in ((1, 2), (0, 6)):
        processes = start_both(arguments)
        try:
            wait_for_state(workdir, step, processes)
            processes[lost].kill()
            began = time.monotonic()
            told = processes[1 - lost].communicate(timeout=SECONDS_TO_END)[1]
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        print(f"process {lost} lost: the other ended after {time.monotonic() - began:.1f} s")
        assert processes[1 - lost].returncode not in (0, -9)
        assert f"process {lost} is lost" in told, told
    processes = start_both(arguments)
    try:
        wait_for_state(workdir, 10, processes)
        processes[1].terminate()
        told = [process.communicate(timeout=SECONDS_TO_END)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [75, 75], told
    saved = {int(step) for text in told for step in re.findall(r"the state after (\d+) steps is saved in", text)}
    assert len(saved) == 1 and all(len(re.findall("scpo: .*interrupted: ", text)) == 1 for text in told), told
    capsys.readouterr()
    assert scpo(*run_arguments(world, workdir, *FLAGS)) == 0
    said = capsys.readouterr().err
    change = f"devices 8 -> {jax.device_count()}, processes 2 -> 1"
    assert f"goes on after {saved.pop()} steps, elsewhere ({change}): " in said
    one = tmp_path / "one"
    assert scpo(*run_arguments(world, one, *FLAGS)) == 0
    ours, theirs = metrics_of(workdir), metrics_of(one)
    assert ours.keys() == theirs.keys() and len(ours) == 3 * 17
    for key, row in theirs.items():
        assert ours[key] == pytest.approx(row, rel=0, abs=1e-5), key
    texts = [(row["prompt"], row["chosen"]) for row in read_rows(world.data)[::4]]
    ours, theirs = scores_of(workdir, texts), scores_of(one, texts)
    for group, values in theirs.items():
        assert values.std() > 2e-3
        np.testing.assert_allclose(ours[group], values, rtol=0, atol=1e-5)
