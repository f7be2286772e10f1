"""Several processes give what one gives, agree, and end together. Each of two has four fake devices, over loopback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from scpo_jax import checkpoint, distributed, score
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import packing, preferences, vocabulary
from scpo_jax.models import module
from tests.bucket_helpers import BUCKET
from tests.bucket_helpers import buckets as buckets  # a fixture
from tests.model_helpers import informative_params
from tests.run_helpers import World, pairs, read_rows, refusal, scpo, unrounded_report, with_devices, write_rows

LIMIT = 900  # seconds for two processes on a busy machine; killed then
SECONDS_TO_NOTICE = 150  # that one is lost, start included
MODEL = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 0, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def start(process: int, arguments: list, port: int, module_name="scpo_jax.main", processes=2) -> subprocess.Popen:
    """One of the processes."""
    flags = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={process}"]
    environment = with_devices(4) | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "CI": "true",  # transformers says things twice under it
    }
    command = [sys.executable, "-m", module_name, *map(str, arguments), *flags]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def free_port() -> int:
    """A port that nobody uses, for a coordinator."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_both(arguments, other=None, module_name="scpo_jax.main") -> list[subprocess.Popen]:
    """Process 0, and process 1, which may have `other` arguments."""
    port = free_port()
    return [start(0, arguments, port, module_name), start(1, other or arguments, port, module_name)]


def both(*arguments, other=None, module_name="scpo_jax.main") -> list[tuple[int, str]]:
    """(exit code, standard error) of process 0 and of process 1, which may have `other` arguments; both end in time."""
    return until_ended(start_both(arguments, other, module_name))


def until_ended(processes) -> list[tuple[int, str]]:
    """(exit code, standard error) of each process, once it has ended."""
    try:
        limit = time.monotonic() + LIMIT
        told = [process.communicate(timeout=max(limit - time.monotonic(), 1))[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def wait_for_state(workdir, step: int, processes) -> None:
    """Waits until the state of a training after so many steps, or a later one, stands."""
    limit, states = time.monotonic() + LIMIT, workdir / "checkpoints" / "training"
    while not any(int(path.name) >= step for path in states.glob("full-*/*") if path.name.isdigit()):
        ended = [one.communicate()[1] for one in processes if one.poll() is not None]
        assert time.monotonic() < limit and not ended, ended
        time.sleep(0.005)


def own_lines(text: str) -> list[str]:
    """What scpo says, without the news of the transport."""
    return [line for line in text.splitlines() if line and not line.startswith("[Gloo]")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Preference pairs and a model without dropout, whose masks depend on the mesh."""
    world = World(tmp_path_factory.mktemp("world"))
    texts = [text for row in read_rows(world.data) for text in (row["prompt"], row["chosen"], row["rejected"])]
    tokenizer = vocabulary.make_tokenizer(texts, 200, 64)
    model = module.build(MODEL | {"vocab_size": len(tokenizer)})
    card = {"max_length": 64, "encoding": "pair", "method": "global", "group": ""}
    world.model = world.folder / "model"
    checkpoint.save(world.model, Loaded(model, informative_params(model), tokenizer, card))
    return world


MESH = ["--config.mesh.data=4", "--config.mesh.group=2"]
FLAGS = [
    "--config.global_rm.train=false", "--config.scpo.methods=full", "--config.train.eval_every=1",
    "--config.train.max_steps=12",
    # without it the mean of all rewards has no gradient and Adam makes steps of rounding noise
    "--config.train.center_rewards_coefficient=0.1",
]  # fmt: skip


def run_arguments(world, workdir, *flags) -> list:
    named = f"--config.model.name_or_path={world.model}"
    return ["run", f"--config={world.config}", f"--workdir={workdir}", named, *FLAGS, *flags]


def metrics_of(workdir) -> dict:
    return {(row.pop("training"), row.pop("step")): row for row in read_rows(workdir / "metrics.jsonl")}


def scores_of(workdir, texts) -> dict[str, np.ndarray]:
    """SLUG -> scores of texts by the RM that the workdir has for it."""
    scores = {}
    for folder in sorted((workdir / "checkpoints" / "full").iterdir()):
        loaded = checkpoint.load(folder)
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["model", "params"]
        encoded = [loaded.tokenizer(prompt, text)["input_ids"] for prompt, text in texts]
        encoded = [score.Text(np.array(ids, np.int32), np.zeros(len(ids), np.int32), 0) for ids in encoded]
        scores[folder.name] = score.score_texts(score.score_function(loaded.model, "float32"), loaded.params, encoded)
    return scores


@pytest.fixture(scope="module")
def one(world):
    """The workdir of a run by one process."""
    workdir = world.folder / "one"
    assert scpo(*run_arguments(world, workdir)) == 0
    return workdir


def test_sigterm_to_one_of_two_saves_both_and_one_process_goes_on(world, one, tmp_path, capsys):
    """Both end after the same step with exit code 75."""
    flags = "--config.checkpoint.every_steps=1", "--stages=prepare,global,score,select,train"
    processes = start_both(run_arguments(world, tmp_path, *flags, *MESH))
    try:
        wait_for_state(tmp_path, 2, processes)
        processes[1].terminate()
    finally:
        ended = until_ended(processes)
    assert [code for code, _ in ended] == [75, 75], ended
    steps = {int(step) for _, text in ended for step in re.findall(r"the state after (\d+) steps is saved in", text)}
    assert len(steps) == 1 and all(len(re.findall("scpo: .*interrupted: ", text)) == 1 for _, text in ended), ended
    capsys.readouterr()
    assert scpo(*run_arguments(world, tmp_path, *flags)) == 0
    change = f"devices 8 -> {jax.device_count()}, processes 2 -> 1"
    assert f"goes on after {steps.pop()} steps, elsewhere ({change}): " in capsys.readouterr().err
    ours, theirs = metrics_of(tmp_path), metrics_of(one)
    assert ours.keys() == theirs.keys()
    for key, row in theirs.items():
        assert ours[key] == pytest.approx(row, rel=0, abs=1e-5), key
    texts = [(row["prompt"], row["chosen"]) for row in read_rows(world.data)[::4]]
    ours, theirs = scores_of(tmp_path, texts), scores_of(one, texts)
    for group, values in theirs.items():
        np.testing.assert_allclose(ours[group], values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_is_named_by_the_others(lost):
    """Also while they are so busy that no other thread of theirs has a turn when jax notices."""
    port, began = free_port(), time.monotonic()
    ended = until_ended([start(i, [f"lost{lost}"], port, "tests.test_distributed", 3) for i in range(3)])
    assert ended.pop(lost)[0] == -signal.SIGKILL
    for code, told in ended:
        assert code == 1 and told.count(f"process {lost} is lost") == 1, told
    assert time.monotonic() - began < SECONDS_TO_NOTICE


def test_two_processes_give_what_one_gives(world, one, buckets, tmp_path):
    """Their workdir is in a bucket, as on a pod."""
    (code, told), (other_code, other_told) = both(
        *run_arguments(world, f"gs://{BUCKET}/two", "--config.checkpoint.every_steps=6", *MESH)
    )
    assert code == other_code == 0, told + other_told
    assert not [line for line in own_lines(other_told) if "google" not in line]  # process 0 alone speaks
    assert "report: done" in told
    two = buckets.fetch("two", tmp_path / "two")
    ours, theirs = metrics_of(two), metrics_of(one)
    assert ours.keys() == theirs.keys() and len(ours) == 3 * 13
    for step, row in theirs.items():
        assert ours[step] == pytest.approx(row, rel=0, abs=1e-5), step
    selections = [preferences.read_table(workdir / "selection.parquet") for workdir in (two, one)]
    for name in selections[0].column_names:
        ours, theirs = (table[name].to_numpy() for table in selections)
        if theirs.dtype == np.float32:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        else:
            np.testing.assert_array_equal(ours, theirs)
    texts = [(row["prompt"], row[side]) for row in read_rows(world.data)[::4] for side in ("chosen", "rejected")]
    ours, theirs = scores_of(two, texts), scores_of(one, texts)
    assert ours.keys() == theirs.keys() and len(ours) == 3 and len(texts) == 32
    for group, values in theirs.items():
        assert values.std() > 2e-3
        np.testing.assert_allclose(ours[group], values, rtol=0, atol=1e-5)
    assert unrounded_report(two) == unrounded_report(one)
    for name in ("full_report", "partial_report", "edited_ratios"):
        assert (two / "reports" / f"{name}.json").read_text() == (one / "reports" / f"{name}.json").read_text()
    files = [
        sorted(str(p.relative_to(w)) for p in w.rglob("*.json*") if "checkpoints" not in p.parts) for w in (two, one)
    ]
    assert max(json.loads((two / "reports" / "evaluation.json").read_text())["steps"]["full"].values()) > 0
    assert files[0] == files[1] and not list(two.glob(".token*"))
    assert len(json.loads((two / "run.json").read_text())["environment"]["devices"]) == 8


def test_processes_that_do_not_see_one_workdir(world, tmp_path):
    ours, theirs = (run_arguments(world, tmp_path / name) for name in ("one", "two"))
    for code, told in both(*ours, other=theirs):
        assert code == 2
        assert "is not one place for all processes: process 1 does not see what process 0 writes there" in told
        assert len(own_lines(told)) == 1 and "Traceback" not in told
    assert not (tmp_path / "two").exists() and not list((tmp_path / "one").iterdir())


def test_an_input_error_of_one_process_ends_both(world, tmp_path):
    """Process 0 alone reads the data, while process 1 waits for it."""
    bad = write_rows(tmp_path / "pairs.jsonl", pairs(users=3))
    bad.write_bytes(bad.read_bytes() + b"{oops\n")
    started = time.monotonic()
    (code, told), (other_code, other_told) = both(*run_arguments(world, tmp_path / "work", f"--config.data.path={bad}"))
    assert code == other_code == 2 and time.monotonic() - started < distributed.SECONDS_TO_MEET / 2
    [line], [other] = own_lines(told), own_lines(other_told)
    assert line.startswith("scpo: error: ") and "pairs.jsonl:25" in line
    assert other == line.replace("error: ", "error: process 0: ")


def test_processes_with_other_flags(world, tmp_path):
    arguments = run_arguments(world, tmp_path)
    for code, told in both(*arguments, other=[*arguments, "--config.seed=1"]):
        assert code == 2 and "config, --stages or --force of process 1 differs from that of process 0" in told


def test_scores_of_two_processes(world, tmp_path):
    rows = [row | {"prompt": row["prompt"] * (1 + i % 5)} for i, row in enumerate(read_rows(world.data))]
    source = write_rows(tmp_path / "pairs.jsonl", rows)
    flags = ["score", f"--model={world.model}", f"--input={source}"]
    outputs = [tmp_path / name for name in ("one.jsonl", "two.jsonl", "other.jsonl")]
    assert scpo(*flags, f"--output={outputs[0]}") == 0
    done = both(*flags, f"--output={outputs[1]}", other=[*flags, f"--output={outputs[2]}"])
    assert [code for code, _ in done] == [0, 0], done
    ours, theirs = (read_rows(path) for path in outputs[1::-1])
    assert len(ours) == len(theirs) == 64 and not outputs[2].exists()
    for name in ("score_chosen", "score_rejected"):
        values = np.array([row[name] for row in theirs])
        assert values.std() > 1e-3
        np.testing.assert_allclose([row[name] for row in ours], values, rtol=0, atol=1e-5)


def test_who_is_missing_at_a_barrier():
    (code, told), _ = both("late", module_name="tests.test_distributed")
    assert code == 1
    assert "waited 1 s for all 2 processes at 'a meeting': process 1 did not come\n" in told


def test_a_process_that_leaves_slowly_is_not_aborted():
    """jax aborts a process that sees process 0 end before it."""
    assert [code for code, _ in both("slow", module_name="tests.test_distributed")] == [2, 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes=2"], "go together: give all three or none"),
        (["--coordinator=10.0.0.1:80", "--process=0"], "go together: give all three or none"),
        (["--coordinator=10.0.0.1", "--processes=2", "--process=0"], "it is HOST:PORT of process 0"),
        (["--coordinator=a:99999", "--processes=2", "--process=0"], "it is HOST:PORT of process 0"),
        (["--coordinator=a:80", "--processes=2", "--process=2"], "numbered from 0 to N - 1"),
        (["--coordinator=a:80", "--processes=2", "--process=x"], "invalid literal"),
    ],
)
def test_wrong_flags(flags, message, world, tmp_path, capsys):
    assert message in refusal(capsys, *run_arguments(world, tmp_path), *flags)
    assert message in refusal(capsys, "score", "--model=m", "--input=i", "--output=o", *flags)


def test_one_process_needs_no_other():
    distributed.initialize(None, None, None, 60)
    distributed.initialize("127.0.0.1:1", 1, 0, 60)
    distributed.barrier("nothing")
    assert distributed.count() == 1 and distributed.is_writer()
    assert distributed.on_writer("a value", lambda: {"a": 1}) == {"a": 1} and distributed.gather("x", 2) == [2]


@pytest.mark.parametrize(("devices", "tokens"), [(1, 256), (3, 64), (8, 256)])
def test_steps_of_several_devices(devices, tokens):
    """Every text once, one batch a device and step, all of a step in one shape."""
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    steps = score.in_steps(packing.plan_batches(lengths, 16, tokens), devices)
    assert sorted(i for step in steps for batch in step for i in batch.indices) == list(range(200))
    for step in steps:
        assert len(step) == devices and len({(batch.shape, batch.slots) for batch in step}) == 1
        assert all(max(batch.rows, default=0) < batch.shape[0] and len(batch.indices) <= batch.slots for batch in step)
    assert [score.most_tokens(width, "cpu") for width in (64, 384, 768, 1024)] == [8192, 4096, 2048, 2048]
    assert score.most_tokens(768, "tpu") == 8192
    assert score.tokens_of_batch(1000, 1, 8192) == 8192 and score.tokens_of_batch(10**6, 8, 8192) == 8192
    assert 1000 / 8 <= score.tokens_of_batch(1000, 8, 8192) <= 256


def main() -> None:
    """Process 1 comes too late to a meeting, or is slow to leave after both have failed; or one of three is killed."""
    scene, *flags = sys.argv[1:]
    named = dict(flag.removeprefix("--").split("=") for flag in flags)
    numbers = int(named["processes"]), int(named["process"])
    distributed.initialize(named["coordinator"], *numbers, 10 if "lost" in scene else 60)
    if "lost" in scene:
        distributed.barrier("all are here")
        if named["process"] == scene[-1]:
            time.sleep(1)  # until the others are busy
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            sum(range(10_000_000))  # a part of a second without giving other threads a turn
    if scene == "slow":
        if not distributed.is_writer():
            leave = distributed._leave
            distributed._leave = lambda *arguments: (time.sleep(distributed.SECONDS_TO_LEAVE / 2), leave(*arguments))
        distributed.fail("error: both", 2)
    if distributed.is_writer():
        with pytest.raises(distributed.PeerError) as caught:
            distributed.barrier("a meeting", 1)
        print(caught.value, file=sys.stderr, flush=True)
    else:
        time.sleep(3)
    os._exit(1)


if __name__ == "__main__":
    main()
