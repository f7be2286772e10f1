"""`scpo export --push_to_hub` against a stand-in of the hub's API, and the model card."""

import base64
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest
import yaml

from scpo_jax import checkpoint, judge, model_card
from scpo_jax.workdir import Workdir
from tests.run_helpers import GROUPS, refusal, scpo

TOKEN = "hf_thisIsTheSecretOfTheTest"


class Hub(http.server.BaseHTTPRequestHandler):
    """The endpoints that the client asks for; the server has `repositories`, `files` and `blobs`."""

    def do_GET(self):
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid user token."})
        elif self.path == "/api/whoami-v2":
            self.reply(200, {"type": "user", "name": "me", "orgs": []})
        else:
            self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self.reply(200, {})
        elif self.path == "/api/models/me/chile-rm/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            self.reply(200, {"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})
        elif self.path == "/me/chile-rm.git/info/lfs/objects/batch":
            found = [
                {**item, "actions": {"upload": {"href": self.url(f"blobs/{item['oid']}")}}} for item in objects(body)
            ]
            self.reply(200, {"transfer": "basic", "objects": found})
        elif self.path == "/api/models/me/chile-rm/commit/main":
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            self.reply(404, {"error": f"no {self.path}"})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[hashlib.sha256(content).hexdigest()] = content
        self.reply(200, {})

    def create(self, asked: dict):
        owner = asked["organization"]
        if owner != "me":  # what the hub says, and the token, which it would not
            message = f"You don't have the rights to create a model under the namespace {owner!r} with {TOKEN}."
            return self.reply(403, {"error": message})
        if asked["name"] in self.server.repositories:
            return self.reply(409, {"error": "You already created this model repo"})
        self.server.repositories[asked["name"]] = asked
        return self.reply(200, {"url": self.url(f"me/{asked['name']}"), "name": f"me/{asked['name']}"})

    def commit(self, lines: list[dict]):
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]
        self.reply(200, {"commitUrl": self.url("me/chile-rm/commit/0"), "commitOid": "0" * 40, "pullRequestUrl": None})

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{path}"

    def reply(self, status: int, value: dict, headers: dict | None = None):
        content = json.dumps(value).encode()
        self.send_response(status)
        told = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        if status >= 400:
            told["X-Error-Message"] = value["error"]
        for name, text in {**told, **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def objects(body: bytes) -> list[dict]:
    return [{"oid": item["oid"], "size": item["size"]} for item in json.loads(body)["objects"]]


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.files, server.blobs = {}, {}, {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def here(monkeypatch, tmp_path):
    """The client in this process: it asks `endpoint`, has no login but what `HF_TOKEN` says."""
    from huggingface_hub import constants

    def use(endpoint: str, token: str | None = TOKEN) -> None:
        for name, value in {"ENDPOINT": endpoint, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no" / "token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        if token:
            monkeypatch.setenv("HF_TOKEN", token)

    return use


def endpoint(server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture(scope="module")
def chile(finished):
    return finished.workdir / "checkpoints" / "scpo" / "cote-d-ivoire"


def test_an_export_is_uploaded(hub, chile, tmp_path):
    """As users run it: a process of its own, with HF_ENDPOINT and HF_TOKEN."""
    hub.repositories["other"] = {}
    environment = {**os.environ, "HF_ENDPOINT": endpoint(hub), "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "scpo_jax.main", "export", f"--checkpoint={chile}", f"--output={tmp_path / 'rm'}"]
    done = subprocess.run(
        [*command, "--push_to_hub=me/chile-rm"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr and "commit/0" in done.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "rm").iterdir()}
    assert hub.files == written and {"README.md", "scpo.json", "config.json", "model.safetensors"} <= written.keys()
    asked = hub.repositories["chile-rm"]
    assert asked.get("visibility") == "private" or asked.get("private") is True
    assert b"from_pretrained(name)" in written["README.md"] and b'name = "me/chile-rm"' in written["README.md"]


def test_no_right_to_upload(hub, here, chile, tmp_path, capsys):
    """The folder is there, and the line says how it can still be uploaded; not the token, which the hub repeats."""
    here(endpoint(hub))
    capsys.readouterr()
    assert scpo("export", f"--checkpoint={chile}", f"--output={tmp_path / 'rm'}", "--push_to_hub=nobody/rm") == 2
    told = capsys.readouterr().err
    line = told.splitlines()[-1]
    assert (
        line.startswith("scpo: error: ") and "under the namespace 'nobody'" in line and "`hf upload nobody/rm" in line
    )
    assert TOKEN not in told and (tmp_path / "rm" / "model.safetensors").exists() and not hub.files


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("me/rm", None, "needs a login: run `hf auth login`"),
        ("me/rm", "hf_another", "the hub does not accept the login: .*nvalid"),
        ("rm", TOKEN, "it is USER/NAME or ORGANISATION/NAME"),
        ("me/my rm", TOKEN, "--push_to_hub=me/my rm: "),
        ("", TOKEN, "--push_to_hub=: "),
    ],
)
def test_refused_before_anything_is_written(name, token, message, hub, here, chile, tmp_path, capsys):
    here(endpoint(hub), token)
    flags = [f"--checkpoint={chile}", f"--output={tmp_path / 'rm'}", f"--push_to_hub={name}"]
    told = refusal(capsys, "export", *flags)
    assert re.search(message, told) and (token is None or token not in told)
    assert not (tmp_path / "rm").exists() and not hub.repositories


def test_no_network(here, chile, tmp_path, capsys):
    here("http://127.0.0.1:9")
    flags = [f"--checkpoint={chile}", f"--output={tmp_path / 'rm'}", "--push_to_hub=me/rm"]
    assert "the hub does not accept the login" in (told := refusal(capsys, "export", *flags)) and TOKEN not in told


# The card.


def card_of(source, place="me/rm") -> tuple[dict, str]:
    """(metadata, text) of the card of a checkpoint."""
    _, metadata, text = model_card.text_of(str(source), checkpoint.load(source), place).split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_a_card_says_what_the_evaluation_says(finished, chile):
    metadata, text = card_of(chile)
    assert metadata["license"] == "unknown" and metadata["pipeline_tag"] == "text-classification"
    assert "base_model" not in metadata and "datasets" not in metadata
    report = json.loads((finished.workdir / "reports" / "evaluation.json").read_text())
    for method in ("scpo", "global"):
        record = report["methods"][method][GROUPS[1]]["all"]
        numbers = [f"{100 * record[key]:.1f}" for key in ("accuracy", "low", "high")]
        row = f"| {GROUPS[1]} | {method} | {numbers[0]} [{numbers[1]}, {numbers[2]}] |"
        assert text.count(row) == 1 and f"| {record['n']} |" in text
    for fact in (
        "| tau | 0.7 |",
        "| beta | 1.1 |",
        "none: trained from scratch",
        "jsonl, file pairs.jsonl",
        "64 tokens",
    ):
        assert fact in text
    assert str(finished.folder) not in text and GROUPS[0] not in text.split("## Accuracy")[1]


def test_the_card_of_the_global_model_has_all_groups(finished, tmp_path):
    _, text = card_of(finished.workdir / "checkpoints" / "global")
    assert all(text.count(f"| {group} | global |") == 1 for group in GROUPS) and "# Global reward model" in text
    _, alone = card_of(shutil.copytree(finished.workdir / "checkpoints" / "global", tmp_path / "rm"))
    assert "Not evaluated" in alone and "| base model | unknown |" in alone


def test_the_card_of_a_blend(finished):
    loaded = judge.load_blend(str(finished.workdir), "scpo", json.dumps({GROUPS[1]: 0.5}))
    text = model_card.text_of(str(finished.workdir), loaded, "me/rm")
    assert "Not evaluated" in text and '{"Côte d\'Ivoire": 0.5}' in text and "nothing was trained" in text


BASES = {
    "model.name_or_path": "org/name", "model.revision": "", "data.source": "prism", "data.path": "", "data.groups": []
}  # fmt: skip


@pytest.mark.parametrize("stated", ["README.md", "config.json", None])
def test_the_base_models_licence(stated, finished, chile, tmp_path, monkeypatch):
    """Of a folder by what lies there, of a hub id by the client's cache; never guessed."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    if stated == "README.md":
        (snapshot / stated).write_text("---\nlicense: llama3.1\n---\n# A model\n")
    elif stated:
        (snapshot / stated).write_text('{"license": "mit"}')
    expected = {"README.md": "llama3.1", "config.json": "mit", None: "unknown"}[stated]
    run = Workdir(tmp_path / "work")
    for name in ("org/name", str(snapshot)):
        run.write_record({"schema_version": 2, "stages": {}, "config": BASES | {"model.name_or_path": name}})
        described = model_card.describe(checkpoint.load(chile), run, "me/rm")
        assert described["licence"] == expected and described["data_id"] == "HannahRoseKirk/prism-alignment"
        assert described["base_id"] == ("org/name" if name == "org/name" else "")
        assert str(tmp_path) not in json.dumps(described)


def test_names_cannot_break_the_card(chile, tmp_path, monkeypatch):
    loaded = checkpoint.load(chile)
    loaded = loaded._replace(card=loaded.card | {"group": "a|b\n# c"})
    text = model_card.text_of(str(tmp_path), loaded, "me/rm")
    assert "| group | a\\|b # c |" in text and "\n# c" not in text
