"""No code of others is run, no file outside of a model's folder is read, and no token is shown."""

import ast
import pathlib
import shutil

import pytest

import scpo_jax
from scpo_jax import errors
from scpo_jax.errors import InputError
from scpo_jax.models import hf
from tests.faults import model_cases
from tests.faults.whole import Whole
from tests.run_helpers import refusal, scpo

SOURCES = sorted(pathlib.Path(scpo_jax.__file__).parent.rglob("*.py"))
TOKEN = "hf_thisIsNoTokenButLooksLikeOne"
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}  # modules


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Whole(tmp_path_factory.mktemp("whole"))


def test_nothing_is_unpickled_and_no_code_of_others_is_run():
    nodes = [(path.name, node) for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]
    for file, node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & UNSAFE, file
    found = [  # (file, what is called, its keyword arguments that are constants)
        (file, ast.unparse(node.func), {k.arg: getattr(k.value, "value", None) for k in node.keywords})
        for file, node in nodes
        if isinstance(node, ast.Call)
    ]
    assert [named.get("weights_only") for _, name, named in found if name == "torch.load"] == [True]
    assert [named.get("trust_remote_code") for _, name, named in found if name.endswith("from_pretrained")] == [False]
    assert not [name for _, name, _ in found if name in ("eval", "np.load", "numpy.load", "os.system")]
    assert [file for file, name, _ in found if name == "exec"] == ["configuration.py"]  # the user's own config
    assert not [name for _, name, named in found if named.get("shell") or named.get("trust_remote_code")]


def test_a_tokenizer_with_code_is_read_without_it(inputs, tmp_path, capfd):
    model = shutil.copytree(inputs.model, tmp_path / "model")
    model_cases.remote_tokenizer(model)
    assert scpo(*inputs.score(tmp_path, model=model)) in (0, 2)
    assert not (model / "ran").exists() and "Traceback" not in capfd.readouterr().err


def test_links_of_the_hubs_cache_are_followed(inputs, tmp_path):
    repository = tmp_path / "models--org--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abc"
    shutil.copytree(inputs.model, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(pathlib.Path("../../blobs") / path.name)
    hf.load(snapshot)
    hf.load_tokenizer(snapshot)
    (tmp_path / "elsewhere").mkdir()
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(shutil.copy(blobs / "config.json", tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="config.json is a link to a place outside"):
        hf.load(snapshot)


def test_links_within_a_folder_are_followed(inputs, tmp_path):
    model = shutil.copytree(inputs.model, tmp_path / "model")
    (model / "model.safetensors").rename(model / "weights")
    (model / "model.safetensors").symlink_to("weights")
    hf.load(model)
    linked = tmp_path / "linked"
    linked.symlink_to(model)
    hf.load(linked)


def test_tokens_are_not_shown(inputs, tmp_path, monkeypatch, capsys):
    """The hub's client may quote a request whose header has the token."""
    import huggingface_hub

    def fail(*_, **__):
        raise OSError(f"illegal header b'Bearer {TOKEN}'")

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    for arguments in (
        inputs.score(tmp_path, model="org/name"),
        inputs.run(tmp_path, "--config.data.source=prism", "--config.data.path=org/name"),
    ):
        found = refusal(capsys, *arguments)
        assert TOKEN not in found and "Bearer (token)" in found


def test_tokens_are_not_stored(inputs, tmp_path, monkeypatch, capsys):
    for name in errors.SECRETS:
        monkeypatch.setenv(name, TOKEN)
    assert scpo(*inputs.run(tmp_path)) == 0
    captured = capsys.readouterr()
    assert TOKEN not in captured.out + captured.err
    files = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert files and not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_a_file_cannot_steer_the_terminal(inputs, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"\\u001b[2J\\u202e": 1}\n')
    found = refusal(capsys, *inputs.score(tmp_path, input=path))
    assert "\\x1b[2J\\u202e" in found and found.strip().isprintable()


def test_long_lines_keep_both_ends():
    line = errors.line_of(InputError("begin " + "x" * 10_000 + " end"))
    assert len(line) < 4100 and line.startswith("begin x") and line.endswith("x end")
