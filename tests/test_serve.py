"""The service: scores are those of offline scoring whatever waits together, and no client can stop it."""

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import jax
import numpy as np
import pytest

from scpo_jax import judge, serve, serve_app, serve_engine, serve_requests, steering
from scpo_jax.errors import InputError
from scpo_jax.serve_engine import Busy, Engine
from tests import serve_helpers
from tests.run_helpers import refusal
from tests.serve_helpers import GROUPS, PROFILES, offline, texts

PAIR = {"prompt": "p", "response": "r"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return serve_helpers.make_workdir(tmp_path_factory.mktemp("served") / "work")


@pytest.fixture(scope="module")
def engine(folder):
    engine = Engine(judge.open_judge(str(folder)), tokens=256)
    engine.start()
    engine.ready.wait()
    yield engine
    engine.close()


def ask(app, method: str, path: str, body: bytes | dict = b"", headers=(), parts=1) -> tuple[int, dict, bytes]:
    """(status, headers, body) of the answer to a request whose body comes in parts; with 0 of them it never does."""
    path, _, query = path.partition("?")
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = -(-len(body) // max(parts, 1)) or 1
    coming = [body[i : i + size] for i in range(0, len(body), size)] or [b""] * (parts > 0)
    answer = []

    async def receive():
        if not coming:
            await asyncio.sleep(3600)
        part = coming.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(coming)}

    async def send(message):
        answer.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "headers": list(headers), "scheme": "http", "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 9), "root_path": "",
    }  # fmt: skip
    with contextlib.suppress(ZeroDivisionError):  # the fault that a test plants; starlette raises what it answers
        asyncio.run(app(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in answer[0]["headers"]}
    return answer[0]["status"], found, b"".join(message.get("body", b"") for message in answer[1:])


def test_scores_are_those_of_offline_scoring(folder, engine):
    """Requests of all sizes and profiles at once; nothing is compiled once it is ready."""
    asked, cuts = texts(60), [0, 1, 3, 20, 21, 60]
    jobs = [(a, b, i % 3) for i in range(9) for a, b in zip(cuts, cuts[1:], strict=False)]
    futures = [engine.submit(asked[a:b], PROFILES[p]) for a, b, p in jobs]
    expected = [offline(folder, profile, asked) for profile in PROFILES]
    assert min(scores.std() for scores in expected) > 0.1 and np.abs(expected[0] - expected[1]).max() > 0.1
    for (a, b, p), future in zip(jobs, futures, strict=True):
        np.testing.assert_allclose(future.result(), expected[p][a:b], rtol=0, atol=1e-5)
    assert engine.compiled_after_warm_up == 0 and engine.queued == 0
    engine.submit(asked, steering.check({GROUPS[0]: -0.5, GROUPS[1]: 0.1, GROUPS[2]: 2}, GROUPS, "")).result()
    assert engine.compiled_after_warm_up == 0


def test_the_ends_are_the_models_themselves(folder, engine):
    for group in GROUPS:
        own = judge.open_judge(str(folder)).scorer(group).loaded.params
        blended = engine.blends({group: 1.0})
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), own, blended)


def test_few_blends_are_kept(engine, monkeypatch):
    monkeypatch.setattr(engine.blends, "capacity", 2)
    for strength in (0.1, 0.2, 0.1, 0.3):
        engine.blends({GROUPS[0]: strength})
    assert engine.blends.kept == [{GROUPS[0]: 0.1}, {GROUPS[0]: 0.3}]


def test_rounds(engine, monkeypatch):
    """The oldest first, with all that wait for its profile; equal texts once."""
    taken, kept = [], engine._scores
    entered, gate = threading.Event(), threading.Event()

    def noted(jobs):
        entered.set()
        gate.wait()
        taken.append([(len(job.texts), job.profile) for job in jobs])
        return kept(jobs)

    monkeypatch.setattr(engine, "_scores", noted)
    first = engine.submit(texts(1), {})
    entered.wait()
    before = engine.counts["tokens"]
    later = [engine.submit(texts(n), PROFILES[p]) for n, p in ((2, 1), (3, 0), (3, 1), (2, 0))]
    while engine._encoded.qsize() < 4:
        time.sleep(0.01)
    gate.set()
    for future in (first, *later):
        future.result()
    assert taken == [[(1, {})], [(2, PROFILES[1]), (3, PROFILES[1])], [(3, {}), (2, {})]]
    lengths = [len(text.input_ids) for text in engine._texts(texts(3))]
    assert engine.counts["tokens"] - before == lengths[0] + 2 * sum(lengths)


def test_what_fails_fails_alone(engine, monkeypatch):
    good = engine.submit(texts(2), {})
    extreme = engine.submit(texts(2), {GROUPS[0]: 1e38})
    monkeypatch.setattr(serve_engine, "QUEUED", 5)
    with pytest.raises(Busy, match="wait already"):
        engine.submit(texts(4), {}), engine.submit(texts(4), {})
    with pytest.raises(InputError, match="no finite score"):
        extreme.result()
    monkeypatch.setattr(engine, "_texts", lambda asked: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.submit(texts(1), {}).result()
    monkeypatch.undo()
    assert np.isfinite(good.result()).all() and len(engine.submit([], {}).result()) == 0
    while engine.queued:
        time.sleep(0.01)


def test_a_failed_warm_up_is_said(folder, monkeypatch):
    monkeypatch.setattr(Engine, "_warm_up", lambda self: 1 / 0)
    engine, called = Engine(judge.open_judge(str(folder))), threading.Event()
    early = engine.submit(texts(1), {})
    engine.start(on_failure=called.set)
    with pytest.raises(ZeroDivisionError):
        early.result()
    assert called.is_set() and not engine.ready.is_set()
    with pytest.raises(Busy, match="stopping"):
        engine.submit(texts(1), {})
    engine.close()


def test_routes(folder, engine):
    app = serve_app.create(engine, PROFILES[1])
    asked = texts(5, seed=1)
    rows = [{"prompt": prompt, "response": response} for prompt, response in asked]
    for profile in (None, PROFILES[0], PROFILES[2], f"{GROUPS[2]}=1"):
        body = {"texts": rows} | ({} if profile is None else {"profile": profile})
        status, headers, answer = ask(app, "POST", "/score", body, parts=7)
        assert status == 200 and headers["content-type"] == "application/json", answer
        meant = profile if isinstance(profile, dict) else PROFILES[1]
        assert json.loads(answer)["profile"] == meant
        np.testing.assert_allclose(json.loads(answer)["scores"], offline(folder, meant, asked), atol=1e-5)
    found = json.loads(ask(app, "GET", "/profiles")[2])
    assert found["groups"] == sorted(GROUPS) and found["default"] == PROFILES[1] and PROFILES[2] in found["cached"]
    assert json.loads(ask(app, "GET", "/healthz")[2]) == {"status": "ready"}
    document = json.loads(ask(app, "GET", "/openapi.json")[2])
    served = {"/score", "/get_reward", "/healthz", "/profiles", "/metrics", "/openapi.json"}
    assert set(document["paths"]) == served
    counts = ask(app, "GET", "/metrics")[2].decode()
    assert 'scpo_serve_requests_total{route="/score",status="200"} 4.0' in counts
    assert "scpo_serve_compilations_total 0.0" in counts and "scpo_serve_queued_texts 0.0" in counts
    assert 'scpo_serve_request_seconds_bucket{le="0.005",route="/score"}' in counts


def test_rewards_for_openrlhf(folder, engine):
    app = serve_app.create(engine, {})
    asked = texts(4)
    prompts = [f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt, _ in asked]
    queries = [f"{p}{response}<|im_end|>" for p, (_, response) in zip(prompts, asked, strict=True)]
    body = {"query": queries, "prompts": prompts, "labels": ["a", 1, None, {}]}
    for query, profile in (("", {}), ("?profile=" + urllib.parse.quote(f"{GROUPS[2]}=1"), PROFILES[1])):
        status, _, answer = ask(app, "POST", "/get_reward" + query, body)
        found, expected = json.loads(answer), offline(folder, profile, asked)
        assert status == 200 and set(found) == {"rewards", "scores", "extra_logs"}
        for values in (found["rewards"], found["scores"], found["extra_logs"]["reward_model_score"]):
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/score", b"", 405, "Method Not Allowed"), ("GET", "/nothing", b"", 404, "Not Found"),
        ("POST", "/score/", PAIR, 404, "Not Found"), ("POST", "/score", b"\xff", 400, "no JSON in UTF-8"),
        ("POST", "/score", PAIR | {"profile": {"Peru": 1}}, 422, "there is no group"),
        ("POST", "/score", PAIR | {"profile": "@/etc/passwd"}, 422, "no profile"),
        ("POST", "/score", {"texts": [PAIR] * 1025}, 413, "1025 texts"),
        ("POST", "/score", b" " * (serve_requests.BODY_BYTES + 1), 413, "the body has more than"),
        ("POST", "/get_reward?profile=/etc/passwd", {"query": ["a"], "prompts": ["a"]}, 422, "no profile"),
        ("POST", "/get_reward", {"query": ["a"], "prompts": ["b"]}, 422, "does not begin with its prompt"),
    ],
)  # fmt: skip
def test_refusals(engine, method, path, body, status, message):
    found = ask(serve_app.create(engine, {}), method, path, body, parts=50)
    assert found[0] == status and message in json.loads(found[2])["error"]


def test_full_slow_and_broken(engine, monkeypatch):
    app = serve_app.create(engine, {})
    monkeypatch.setattr(engine, "queued", serve_engine.QUEUED)
    status, headers, _ = ask(app, "POST", "/score", PAIR)
    assert status == 429 and headers["retry-after"] == "1"
    monkeypatch.undo()
    monkeypatch.setattr(serve_app, "SECONDS_TO_SEND", 0.01)
    assert ask(app, "POST", "/score", parts=0)[0] == 408
    monkeypatch.setattr(engine, "submit", lambda *_: 1 / 0)
    status, _, answer = ask(app, "POST", "/score", PAIR)
    assert status == 500 and json.loads(answer)["error"] == "internal error: ZeroDivisionError"
    monkeypatch.undo()
    assert ask(app, "POST", "/score", PAIR)[0] == 200


def test_who_may_ask(engine):
    app = serve_app.create(engine, {}, token="sesame")
    password = base64.b64encode(b"any:sesame")
    for given, status in ((None, 401), (b"Bearer sesame", 200), (b"bearer sesame", 200), (b"Bearer sesam", 401),
                          (b"sesame", 401), (b"Bearer \xff", 401), (b"Basic " + password, 200), (b"Basic %", 401),
                          (b"Basic " + base64.b64encode(b"sesame:any"), 401)):  # fmt: skip
        headers = [] if given is None else [(b"authorization", given)]
        found = ask(app, "POST", "/score", PAIR, headers)
        assert found[0] == status and (status == 200 or found[1]["www-authenticate"] == "Bearer"), given
        assert ask(app, "GET", "/metrics", headers=headers)[0] == status and ask(app, "GET", "/healthz")[0] == 200


def test_a_fuzzed_client_gets_reasons(engine):
    rng = np.random.default_rng(0)
    app = serve_app.create(engine, {})
    leaves = [None, True, 0, -1e308, "", "a", "\ud800", "\0", [], {}, "x" * 200_000, float("nan"), 10**400]
    names = ["texts", "prompt", "response", "messages", "profile", "query", "prompts", "role", "content", "x"]

    def value(depth):
        kind = rng.integers(0, 3 if depth else 1)
        if kind == 0:
            return leaves[rng.integers(len(leaves))]
        n = rng.integers(0, 4)
        return [value(depth - 1) for _ in range(n)] if kind == 1 else {
            names[rng.integers(len(names))]: value(depth - 1) for _ in range(n)}  # fmt: skip

    for i in range(150):
        body = json.dumps(value(4)).encode()
        if i % 3 == 0:
            cut = bytearray(body)
            for place in rng.integers(0, len(cut), 3):
                cut[place] = rng.integers(256)
            body = bytes(cut)
        status, _, answer = ask(app, "POST", ("/score", "/get_reward", "/get_reward?profile=%ff")[i % 3], body)
        assert status == 200 or (400 <= status < 500 and json.loads(answer)["error"]), body[:200]
    assert ask(app, "POST", "/score", PAIR)[0] == 200


def test_what_the_command_refuses(folder, capsys, monkeypatch):
    model = str(folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "cannot listen there" in refusal(capsys, "serve", f"--model={model}", f"--port={port}")
    for message, *flags in (
        ("lets others ask: name a token", f"--model={model}", "--host=0.0.0.0"),
        ("no address of this machine", f"--model={model}", f"--host={'a' * 64}"),
        ("from 0 (any that is free)", f"--model={model}", "--port=70000"),
        ("--model=... is missing",),
        ("is another model", f"--model={model}/checkpoints/scpo/chile", f"--workdir={model}"),
        ("there is no group", f"--workdir={model}", "--port=0", "--profile=y=1"),
        ("is none: name one", f"--model={model}/checkpoints/scpo/chile", "--port=0", "--profile={}"),
    ):
        assert message in refusal(capsys, "serve", *flags)
    monkeypatch.setenv(serve.TOKEN, "")
    assert "printable ASCII" in refusal(capsys, "serve", f"--model={model}", "--port=0")
    monkeypatch.delenv(serve.TOKEN)
    monkeypatch.delitem(sys.modules, "scpo_jax.serve")
    monkeypatch.delattr("scpo_jax.serve")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'scpo_jax[serve]'" in refusal(capsys, "serve", f"--model={model}")


def request(path: str, body=None) -> bytes:
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    body = b"" if body is None else json.dumps(body).encode()
    return f"{head}Authorization: Bearer sesame\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def send(port: int, content: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=300)
    connection.sendall(content)
    return connection


def receive(connection: socket.socket) -> tuple[int, bytes]:
    with connection, connection.makefile("rb") as file:
        head, _, body = file.read().partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_a_signal_ends_it_once_all_is_answered(folder):
    """Requests are accepted while programs are still compiled; SIGTERM then; all get their answers."""
    environment = os.environ | {
        serve.TOKEN: "sesame", "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }  # fmt: skip
    command = [sys.executable, "-m", "scpo_jax.main", "serve", f"--model={folder}", "--port=0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = (re.search(r"http://127.0.0.1:(\d+)", line) for line in process.stderr)
            port = int(next(filter(None, lines))[1])
            asked = texts(50)
            rows = [{"prompt": prompt, "response": response} for prompt, response in asked]
            waiting = [send(port, request("/score", {"texts": rows, "profile": PROFILES[i % 3]})) for i in range(12)]
            client = {"query": [p + " a" for p, _ in asked], "prompts": [p for p, _ in asked], "labels": [""] * 50}
            waiting.append(send(port, request("/get_reward", client)))
            assert receive(send(port, request("/nothing")))[0] == 404  # by now it has accepted what came before
            while accepted(port) < 13 * 50:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            answers = [receive(connection) for connection in waiting]
            assert [status for status, _ in answers] == [200] * 13 and process.wait(120) == 0
            for i, (_, body) in enumerate(answers[:12]):
                expected = offline(folder, PROFILES[i % 3], asked)
                np.testing.assert_allclose(json.loads(body)["scores"], expected, rtol=0, atol=1e-5)
            with pytest.raises(ConnectionRefusedError):
                send(port, b"")
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def accepted(port: int) -> float:
    """Texts that wait or have been scored."""
    lines = receive(send(port, request("/metrics")))[1].decode().splitlines()
    counts = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return float(counts["scpo_serve_queued_texts"]) + float(counts["scpo_serve_texts_total"])
