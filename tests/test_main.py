"""The command line: what it refuses, in one line and with exit code 2, before anything is written."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from scpo_jax.models import hf
from tests import model_helpers
from tests.run_helpers import World, pairs, read_rows, refusal, scpo, snapshot, write_rows


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def refused_run(capsys, world, *flags) -> str:
    """The line with which `scpo run` refuses; it has made no workdir."""
    message = refusal(capsys, "run", f"--config={world.config}", f"--workdir={world.workdir}", *flags)
    assert not world.workdir.exists()
    return message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no command: it is one of run, score"),
        (("runn",), "unknown command 'runn'"),
        (("run", "--nope=1"), "unknown flag nope"),
        (("run", "--workdirr=1"), "did you mean workdir?"),
        (("run", "--model=x"), "unknown flag model; it is a flag of score, evaluate"),
        (("score", "--config.seed=1"), "it is a flag of run"),
        (("run", "--workdir=w"), "--config=... is missing"),
        (("run", "--config=c.py"), "--workdir=... is missing"),
        (("run", "--config=missing.py", "--workdir=w"), "--config=missing.py: no such file"),
        (("run", "--config"), "Missing value for flag --config"),
        (("run", "extra"), "'extra' is no flag"),
        (("score", "--model=m", "--input=i"), "--output=... is missing"),
        (("score", "--dtype=float16"), "value should be one of <float32|bfloat16>"),
        (("run", "--flagfile=missing"), "missing"),
    ],
)
def test_commands_and_flags(arguments, message, capsys):
    assert message in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.scpo.tao=1", "unknown config key config.scpo.tao; did you mean config.scpo.tau"),
        ("--config.foo=1", "unknown config key config.foo"),
        ("--config.scpo=1", "unknown config key config.scpo"),
        ("--config.train.max_steps=1e3", "--config.train.max_steps=1e3: invalid literal for int"),
        ("--config.scpo.tau=high", "--config.scpo.tau=high: could not convert"),
        ("--config.global_rm.train=maybe", "Non-boolean argument"),
        ("--config.train.max_steps", "Missing value"),
        ("--config.train.max_steps=0", "config.train.max_steps=0: it has to be at least 1"),
        ("--config.model.max_length=7", "at least 8"),
        ("--config.scpo.tau=nan", "config.scpo.tau=nan: it has to be a finite number"),
        ("--config.data.test_size=1.5", "it has to be from 0 to 1"),
        ("--config.scpo.beta=0", "it has to be above 0"),
        ("--config.train.groups_per_program=0", "1 or more, or -1 for all"),
        ("--config.mesh.group=3", "config.mesh.group=3, config.mesh.data=-1, config.mesh.model=1: they do not make up"),
        ("--config.mesh.group=-1", "one of them may be -1"),
        ("--config.model.dtype=float16", "it is one of float32, bfloat16"),
        ("--config.model.encoding=joint", "it is one of pair, reference"),
        ("--config.data.source=xml", "it is one of prism, jsonl"),
        ("--config.train.schedule=step", "it is one of linear, cosine, constant"),
        ("--config.scpo.methods=scpo,dpo", "names 'dpo'; methods are scpo, full"),
        ("--config.per_group=foo", "holds 'foo': an entry is (group, key, value)"),
        ("--config.per_group=(('日本','tao',.5),)", "key one of tau, beta, learning_rate, max_steps"),
        ("--config.per_group=(('日本','tau','x'),)", "has to be a number above 0"),
        ("--config.per_group=(('日本','max_steps',2.5),)", "a whole one"),
        ("--config.per_group=(('日本',", "not a Python tuple"),
        ("--config.controls=pooled,nobody", "names 'nobody'; controls are pooled, other_country, shuffled"),
        ("--config.global_rm.train=false", "config.model.name_or_path is empty"),
        ("--stages=prepare,bake", "--stages names 'bake'; stages are prepare, global"),
        ("--stages=select", "stage select reads what stage score writes, which has not run"),
    ],
)
def test_values_of_the_config(flag, message, world, capsys):
    assert message in refused_run(capsys, world, flag)


BASED = "from scpo_jax.configs import base\ndef get_config():\n c = base.get_config()\n {}\n return c\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("x = 1\n", "no get_config()"),
        ("def get_config():\n    return {}\n", "no get_config() that returns a ConfigDict"),
        ("import nothing_there\n", "No module named 'nothing_there'"),
        (
            BASED.format("c.scpo.tao = 1"),
            "unknown config key scpo.tao; did you mean scpo.tau",
        ),
        (
            BASED.format("c.seed = 'a'"),
            "TypeError",
        ),
        ("import ml_collections\ndef get_config():\n return ml_collections.ConfigDict()\n", "missing config key"),
    ],
)
def test_config_files(content, message, world, capsys):
    world.config.write_text(content)
    refused = refused_run(capsys, world)
    assert message in refused and str(world.config) in refused


def damage(rows, line, **changes):
    """The lines of a preference file with one row changed."""
    rows = [dict(row) for row in rows]
    rows[line - 1] |= changes
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


DATA = {
    "not JSON": (lambda rows: damage(rows, 1) + b"{oops\n", ":65: not JSON"),
    "an array": (lambda rows: b"[1]\n" + damage(rows, 1), ":1: this line is a list"),
    "missing field": (lambda rows: b'{"prompt": "a", "group": "World"}\n' + damage(rows, 1), ":1: missing"),
    "wrong type": (lambda rows: damage(rows, 3, chosen=5), ":3: field 'chosen' is a number"),
    "NaN": (lambda rows: damage(rows, 2, margin=float("nan")), ":2: not JSON (NaN"),
    "no number": (lambda rows: damage(rows, 2, margin="much"), ":2: field 'margin'"),
    "duplicate id": (lambda rows: damage(rows, 4, pair_id="pair 0 0"), ":4: duplicate pair_id 'pair 0 0'"),
    "not UTF-8": (lambda rows: damage(rows, 1)[:-3] + b"\xff\xfe\n", ":64: not UTF-8"),
    "empty file": (lambda rows: b"", "is empty"),
    "too many degenerate": (
        lambda rows: damage([row | {"chosen": ""} if i % 3 == 0 else row for i, row in enumerate(rows)], 1),
        "22 of 64 rows are unusable (22 empty_response)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
def test_preference_files(kind, world, capsys):
    change, message = DATA[kind]
    world.data.write_bytes(change(read_rows(world.data)))
    # the model does not exist either: the data are read before it is looked for
    refused = refused_run(capsys, world, "--config.global_rm.train=false", "--config.model.name_or_path=no/model")
    assert message in refused and str(world.data) in refused or "max_dropped" in refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.path=missing.jsonl"], "missing.jsonl does not exist"),
        (["--config.data.path="], "no file is named"),
        (["--config.data.source=prism", "--config.data.path=missing"], "missing does not exist"),
        (["--config.data.source=prism", "--config.data.path=some/data"], "nor could it be fetched"),
        (["--config.data.columns.prompt=question"], "no column 'question'"),
        (["--config.data.group_by=continent"], "no field 'continent': config.data.group_by can be"),
    ],
)
def test_data_sources(flags, message, world, capsys):
    assert message in refused_run(capsys, world, *flags)


@pytest.mark.parametrize("key", ["data.groups", "global_rm.groups", "per_group"])
def test_unknown_groups_are_reported_before_bad_rows_and_models(key, world, capsys):
    world.data.write_bytes(world.data.read_bytes() + b"{oops\n")
    value = "(('Worlds','tau',0.5),)" if key == "per_group" else "Worlds"
    flags = [f"--config.{key}={value}", "--config.model.name_or_path=no/model"]
    refused = refused_run(capsys, world, *flags)
    assert f'config.{key}: there is no group "Worlds"; there are "World", "../../x", "Côte' in refused


@pytest.mark.parametrize("key", ["data.groups", "global_rm.groups", "per_group"])
def test_unknown_groups_in_a_workdir_of_other_groups(key, finished, capsys):
    before = snapshot(finished.workdir)
    value = "(('Japan','tau',0.5),)" if key == "per_group" else "Japan"
    refused = refusal(
        capsys, "run", f"--config={finished.config}", f"--workdir={finished.workdir}", f"--config.{key}={value}"
    )
    assert f'config.{key}: there is no group "Japan"; there are' in refused
    assert snapshot(finished.workdir) == before


@pytest.fixture
def model(tmp_path, finished):
    """A tiny BERT with tokenizer in a Hugging Face folder."""
    hf.save(*model_helpers.make("bert"), tmp_path / "model")
    shutil.copytree(finished.workdir / "data" / "tokenizer", tmp_path / "model", dirs_exist_ok=True)
    return tmp_path / "model"


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_head(folder):
    import safetensors.numpy

    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if "classifier" not in k}, path)


MODELS = {
    "unknown family": (lambda f: change_config(f, model_type="gpt2"), "unknown model family 'gpt2'"),
    "no score head": (drop_head, "no score head"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights there"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json there"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer there"),
    "missing tensor": (lambda f: change_config(f, num_hidden_layers=3), "missing: bert.encoder.layer.2."),
    "extra tensor": (lambda f: change_config(f, num_hidden_layers=1), "not expected: bert.encoder.layer.1."),
}


@pytest.mark.parametrize("kind", MODELS)
def test_model_folders(kind, model, world, tmp_path, capsys):
    spoil, message = MODELS[kind]
    spoil(model)
    flags = ["--config.global_rm.train=false", f"--config.model.name_or_path={model}"]
    assert message in refused_run(capsys, world, *flags)
    texts, output = write_rows(tmp_path / "t.jsonl", [{"prompt": "a", "response": "b"}]), tmp_path / "o.jsonl"
    assert message in refusal(capsys, "score", f"--model={model}", f"--input={texts}", f"--output={output}")
    assert not output.exists()


def test_a_hub_id_that_is_not_cached(world, capsys):
    flags = ["--config.global_rm.train=false", "--config.model.name_or_path=nobody/nothing"]
    assert "nobody/nothing: no such folder, nor from the hub" in refused_run(capsys, world, *flags)


def test_places_that_are_files(finished, world, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is a file" in refusal(capsys, "run", f"--config={world.config}", f"--workdir={place}")
        flags = [f"--model={finished.workdir}", f"--output={place / 'x'}"]
        assert "is a file" in refusal(capsys, "score", f"--input={world.data}", *flags)
        assert "is a file" in refusal(capsys, "evaluate", f"--data={world.data}", *flags)
        flags = [f"--checkpoint={finished.workdir / 'checkpoints' / 'global'}", f"--output={place}"]
        assert "is a file" in refusal(capsys, "export", *flags)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"schema_version": 2, "stages": 3}', '{"schema_version": 99, "stages": {}}']
)
def test_a_record_that_is_none(content, world, capsys):
    world.workdir.mkdir()
    (world.workdir / "run.json").write_text(content)
    before = snapshot(world.workdir)
    assert "run.json" in refusal(capsys, "run", f"--config={world.config}", f"--workdir={world.workdir}")
    assert snapshot(world.workdir) == before


def test_a_failed_run_leaves_no_claim(world, capsys):
    """After a mistake in the data the same workdir takes another config."""
    good = world.data.read_bytes()
    world.data.write_bytes(b"{oops\n")
    refused_run(capsys, world)
    world.data.write_bytes(good)
    assert world.run("--stages=prepare", "--config.seed=3") == 0


def test_help_and_version(capsys):
    assert scpo("--help") == 0 and "evaluate" in capsys.readouterr().out
    assert scpo("--version") == 0 and capsys.readouterr().out.startswith("scpo_jax ")
    for command, flag in (
        ("run", "--workdir"),
        ("score", "--input"),
        ("evaluate", "--data"),
        ("export", "--checkpoint"),
        ("propose", "--budget"),
        ("benchmark", "--fractions"),
    ):
        assert scpo(command, "--help") == 0
        out = capsys.readouterr().out
        assert flag in out and "undefok" not in out and len(out.splitlines()) < 20


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("World,日本", ("World", "日本")),
        ("('World','日本')", ("World", "日本")),
        ('"a, b",c', ('"a, b"', "c")),
        ("", ()),
    ],
)
def test_tuples_on_the_command_line(value, names):
    from scpo_jax import configuration

    assert configuration.TupleParser().parse(value) == names


def test_the_plan_leaves_nothing(world, capsys):
    before = snapshot(world.folder)
    assert world.run("--plan") == 0
    out = capsys.readouterr().out
    assert "日本" in out and "| train " in out and "to do" in out and "of at most 6 steps of 8 pairs" in out
    assert "Nothing was done" in out and snapshot(world.folder) == before


def test_the_plan_of_a_finished_run(finished, capsys):
    before = snapshot(finished.workdir)
    assert finished.run("--plan") == 0
    assert "to do" not in capsys.readouterr().out
    assert finished.run("--plan", "--force", "--config.scpo.tau=0.6") == 0
    states = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")}
    assert "done" in states["score"] and "to do" in states["select"] and "to do" in states["train"]
    assert snapshot(finished.workdir) == before


def test_help_whose_reader_has_gone():
    read, write = os.pipe()
    os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "scpo_jax.main", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=buffered)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_pairs_of_the_helpers_are_sound():
    assert len({row["pair_id"] for row in pairs()}) == len(pairs()) == 64
