"""Workdirs in buckets: a run there is the run of a folder, goes on after a kill, and its models are read from there."""

import io
import json
import os
import pathlib

import aiohttp
import pyarrow.parquet
import pytest
from etils import epath

from scpo_jax import main, storage, untrusted
from scpo_jax.errors import InputError
from scpo_jax.training_state import TrainingState
from tests.bucket_helpers import BUCKET, FORBIDDEN
from tests.bucket_helpers import buckets as buckets  # a fixture
from tests.run_helpers import GROUPS, World, read_rows, scpo, write_rows
from tests.test_resume import Killed, killing


@pytest.fixture(scope="module")
def in_bucket(finished, buckets, tmp_path_factory):
    """The finished run once more, in a bucket, killed in its second training and gone on with."""
    world = World(tmp_path_factory.mktemp("world"))
    world.config, world.data, world.workdir = finished.config, finished.data, epath.Path(f"gs://{BUCKET}/runs/one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "save", killing(TrainingState.save, 4))
        with pytest.raises(Killed):
            world.run("--config.checkpoint.every_steps=3")
    states = {name.split("/")[5] for name in buckets.names("runs/one/checkpoints/training/scpo")}
    assert states == {"3"}
    buckets.failures += [503, 429]  # the clients ask again
    assert world.run("--config.checkpoint.every_steps=3") == 0
    assert not buckets.failures
    return world


def table(content: bytes) -> list[dict]:
    return pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()


def test_a_run_in_a_bucket_is_that_of_a_folder(in_bucket, finished, buckets):
    ours = {name.removeprefix("runs/one/"): buckets.objects[name][0] for name in buckets.names("runs/one/")}
    theirs = {str(path.relative_to(finished.workdir)): path for path in finished.workdir.rglob("*") if path.is_file()}
    assert {name for name in ours if not name.startswith(("checkpoints/", "tensorboard/"))} == {
        name for name in theirs if not name.startswith(("checkpoints/", "tensorboard/"))
    }
    for name in ("reports/full_report.json", "reports/evaluation.json", "data/split.json"):
        assert ours[name] == theirs[name].read_bytes(), name
    for name in ("data/pairs.parquet", "scores/global.parquet", "selection.parquet", "reports/test_scores.parquet"):
        assert table(ours[name]) == table(theirs[name].read_bytes()), name
    rows = [json.loads(line) for line in ours["metrics.jsonl"].splitlines()]
    key = lambda row: (row["training"], row["step"])  # noqa: E731
    assert sorted(rows, key=key) == sorted(read_rows(theirs["metrics.jsonl"]), key=key)
    events = {name.split("/")[1] for name in ours if name.startswith("tensorboard/")}
    assert events == {"global", "scpo", "full"}
    assert not any("checkpoints/training" in name or name.endswith(".partial") for name in ours)
    assert not pathlib.Path("gs:").exists()


def test_nothing_is_done_twice(in_bucket, buckets, capsys):
    before = dict(buckets.objects)
    assert in_bucket.run("--config.checkpoint.every_steps=3") == 0
    assert f"already done in gs://{BUCKET}/runs/one" in capsys.readouterr().err
    assert buckets.objects == before


@pytest.mark.parametrize("model", ["", "/checkpoints/scpo/cote-d-ivoire"])
def test_models_in_a_bucket_answer(model, in_bucket, finished, tmp_path):
    rows = [{"prompt": "question 1", "chosen": "warm reply 3", "rejected": "good answer 3", "group": GROUPS[1]}] * 2
    here = write_rows(tmp_path / "pairs.jsonl", rows)
    there = epath.Path(f"gs://{BUCKET}/pairs of two.jsonl")
    storage.write(there, here.read_bytes())
    for name, workdir, pairs in (("ours", in_bucket.workdir, there), ("theirs", finished.workdir, here)):
        used = f"--model={workdir}{model}"
        assert scpo("score", used, f"--input={pairs}", f"--output={tmp_path / name}.jsonl") == 0
        assert scpo("evaluate", used, f"--data={pairs}", f"--output={tmp_path / name}.json") == 0
    assert (tmp_path / "ours.jsonl").read_bytes() == (tmp_path / "theirs.jsonl").read_bytes()
    assert (tmp_path / "ours.json").read_bytes() == (tmp_path / "theirs.json").read_bytes()


def test_export_from_a_bucket(in_bucket, finished, tmp_path):
    for name, workdir in (("ours", in_bucket.workdir), ("theirs", finished.workdir)):
        place = f"{workdir}/checkpoints/scpo/x"
        assert scpo("export", f"--checkpoint={place}", f"--output={tmp_path / name}") == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_data_in_a_bucket(in_bucket, finished, buckets, capsys):
    """It is read, and a change of it is seen."""
    source, workdir = epath.Path(f"gs://{BUCKET}/pairs.jsonl"), epath.Path(f"gs://{BUCKET}/runs/two")
    rows = finished.data.read_bytes()
    flags = (f"--config={finished.config}", f"--workdir={workdir}", f"--config.data.path={source}", "--stages=prepare")
    storage.write(source, rows)
    assert scpo("run", *flags) == 0
    assert table((workdir / "data" / "pairs.parquet").read_bytes())
    storage.write(source, rows + rows.splitlines(keepends=True)[0].replace(b"pair 0 0", b"another"))
    capsys.readouterr()
    assert scpo("run", *flags) == 2
    assert f"made by another config: {source}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "workdir, code, said",
    [
        ("gs://no-such-bucket/run", 2, "there is no bucket no-such-bucket: make it"),
        (f"gs://{FORBIDDEN}/run", 2, f"--workdir=gs://{FORBIDDEN}/run: Forbidden"),
        ("gs://", 2, "--workdir=gs://: it is neither local nor gs://BUCKET/PATH"),
        ("s3://bucket/run", 2, "--workdir=s3://bucket/run: it is neither local nor gs://"),
        (f"gs://{BUCKET}/file/run", 2, f"gs://{BUCKET}/file is a file: name a folder"),
    ],
)
def test_buckets_that_cannot_be(workdir, code, said, finished, buckets, capsys):
    buckets.objects["file"] = b"", 1
    before = dict(buckets.objects)
    assert scpo("run", f"--config={finished.config}", f"--workdir={workdir}") == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("scpo: ")]
    assert len(lines) == 1 and said in lines[0], lines
    assert buckets.objects == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("score", "--model=s3://b/model", "--input={texts}", "--output={texts}.out"),
        ("score", "--model={run}", "--input=s3://b/texts.jsonl", "--output={texts}.out"),
        ("run", "--config={config}", "--workdir={texts}.run", "--config.data.path=s3://b/pairs.jsonl"),
        ("run", "--config={config}", "--workdir={texts}.run", "--config.model.name_or_path=hf://a/b"),
    ],
)
def test_other_clouds(arguments, finished, tmp_path, capsys):
    texts = write_rows(tmp_path / "texts.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    named = [part.format(run=finished.workdir, texts=texts, config=finished.config) for part in arguments]
    assert scpo(*named) == 2
    assert "it is neither local nor gs://BUCKET/PATH" in capsys.readouterr().err


def test_a_bucket_that_fails_is_one_line(finished, buckets, capsys, monkeypatch):
    """And the exit code for which the launcher tries again."""
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", no_sleep)
    buckets.failures += [500] * 20
    try:
        assert scpo("run", f"--config={finished.config}", f"--workdir=gs://{BUCKET}/failing") == 1
    finally:
        buckets.failures.clear()
    error = capsys.readouterr().err
    assert "scpo: error: the bucket does not answer: " in error and error.count("scpo: ") == 1


class Unreachable(pathlib.PosixPath):
    """A file whose bucket closed the connection: an OSError, as that of a file that cannot be read."""

    def read_text(self, encoding=None):
        raise aiohttp.ClientOSError(104, "connection reset by peer")


def test_a_bucket_that_closes_the_connection_has_no_damaged_file(tmp_path):
    error = pytest.raises(aiohttp.ClientOSError, untrusted.json_object, Unreachable(tmp_path / "run.json")).value
    assert main.ending_of(error) == (
        "error: the bucket does not answer: [Errno 104] connection reset by peer: the same command goes on from here",
        1,
    )


async def no_sleep(_) -> None:
    pass


@pytest.mark.parametrize(
    "arguments",
    [
        ("score", "--model={run}", "--input={texts}", "--output=gs://b/out.jsonl"),
        ("evaluate", "--model={run}", "--data={texts}", "--output=gs://b/out.json"),
        ("export", "--checkpoint={run}/checkpoints/scpo/x", "--output=gs://b/folder"),
        ("score", f"--model=gs://{BUCKET}/huggingface", "--input={texts}", "--output={texts}.out"),
    ],
)
def test_what_has_to_be_local(arguments, finished, tmp_path, buckets, capsys):
    texts = write_rows(tmp_path / "texts.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    named = [argument.format(run=finished.workdir, texts=texts) for argument in arguments]
    assert scpo(*named) == 2
    assert "give a local path here" in capsys.readouterr().err
    assert not pathlib.Path("gs:").exists()


def test_files_appear_whole(tmp_path, buckets):
    for folder in (tmp_path / "a" / "b", epath.Path(f"gs://{BUCKET}/whole")):
        path = epath.Path(folder) / "é.txt"
        storage.write(path, "日本\n")
        storage.write(path, "日本, again\n")
        assert path.read_text() == "日本, again\n"
        assert [file.name for file in storage.files_under(epath.Path(folder))] == ["é.txt"]
        with storage.writing(folder) as place:
            (place / "other").write_bytes(b"\x00")
        with storage.reading(folder) as place:
            assert sorted(file.name for file in place.iterdir()) == ["other", "é.txt"]
            assert (place / "other").read_bytes() == b"\x00"


def test_files_under_a_folder(tmp_path, buckets):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").write_text("")
    assert storage.files_under(epath.Path(tmp_path)) == [epath.Path(tmp_path / "b" / "file")]
    assert storage.files_under(epath.Path(tmp_path / "pipe")) == []
    storage.write(there := epath.Path(f"gs://{BUCKET}/below/b/file"), "")
    assert storage.files_under(epath.Path(f"gs://{BUCKET}/below")) == storage.files_under(there) == [there]
    assert storage.files_under(epath.Path(f"gs://{BUCKET}/nothing")) == []


def test_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(storage.absolute("gs://b/c")) == "gs://b/c"
    assert str(storage.absolute("c")) == str(tmp_path.resolve() / "c")
    with pytest.raises(InputError, match="gs://BUCKET/PATH"):
        storage.check_bucket("gs://A b/c", "--workdir")
