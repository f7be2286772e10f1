"""The service under load: every score against offline scoring, and how much of its throughput is left over HTTP.

    pip install -e '.[serve]'
    JAX_PLATFORMS=cpu python -m tests.bench.serve --workdir=runs/demo --requests=10000 --output=serve.json

Texts are the responses of the run's pairs, cut to random lengths, each with a number so that no two are equal. A
request's texts have one of several profiles: none, single groups, blends. Half of the requests have 16 texts, half one.
Clients are 64 connections of one process that each wait for an answer before they ask again. Offline is `Judge.score`
on the very texts and profiles of all requests, in a process of its own, compiled before the clock runs; it is measured
before and after. All processes share the machine's cores, and only those measured compute.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np

CLIENTS = 64
TEXTS = 16  # of a request, where throughput is compared
WARM = 200  # requests before the clock runs


def profiles_of(groups: list[str]) -> list[dict]:
    """None, single groups, one half-way, a blend."""
    return [{}, {groups[0]: 1.0}, {groups[1]: 1.0}, {groups[-1]: 0.5}, {groups[0]: 0.7, groups[1]: 0.3}]


def make_texts(workdir: str, n: int, seed: int) -> list[dict]:
    """Texts that all differ."""
    from scpo_jax.data import preferences
    from scpo_jax.workdir import Workdir

    rows = preferences.read_table(Workdir(workdir).pairs).to_pylist()
    rng = np.random.default_rng(seed)
    picked, shares = rng.integers(len(rows), size=n), rng.uniform(0.05, 1, n)
    found = []
    for i, (row, share) in enumerate(zip(picked, shares, strict=True)):
        words = rows[row]["chosen" if i % 2 else "rejected"].split()
        response = " ".join(words[: max(int(share * len(words)), 1)])
        found.append({"prompt": rows[row]["prompt"], "response": f"{seed} {i} {response}"})
    return found


def make_requests(workdir: str, profiles: list[dict], requests: int, texts: int, seed: int) -> list[dict]:
    """Bodies of requests."""
    every = make_texts(workdir, requests * texts, seed)
    chosen = np.random.default_rng(seed).integers(len(profiles), size=requests)
    return [{"texts": every[i * texts : (i + 1) * texts], "profile": profiles[own]} for i, own in enumerate(chosen)]


def offline(workdir: str, bodies: list[dict], connection) -> None:
    """Sends (seconds, seconds of its cores, scores of each request) whenever it is asked to."""
    from scpo_jax import judge

    profiles = list({json.dumps(body["profile"]): None for body in bodies})
    judges = {profile: judge.open_judge(workdir, profile=profile) for profile in profiles}
    own = {p: [i for i, body in enumerate(bodies) if json.dumps(body["profile"]) == p] for p in profiles}

    def score():
        found = [None] * len(bodies)
        for profile, numbers in own.items():
            rows = [row for i in numbers for row in bodies[i]["texts"]]
            texts = [row["prompt"] for row in rows], [row["response"] for row in rows]
            scores = judges[profile].score(*texts, [""] * len(rows))
            ends = np.cumsum([len(bodies[i]["texts"]) for i in numbers])
            for i, values in zip(numbers, np.split(scores, ends[:-1]), strict=True):
                found[i] = values.tolist()
        return found

    score()
    connection.send("ready")
    while connection.recv():
        started, used = time.perf_counter(), time.process_time()
        found = score()
        connection.send((time.perf_counter() - started, time.process_time() - used, found))


def clients(port: int, connection) -> None:
    """For each list of bodies that it gets: sends (seconds, of each request its seconds, status and answer)."""
    while (bodies := connection.recv()) is not None:
        connection.send(asyncio.run(load(port, bodies)))


async def load(port: int, bodies: list[dict]) -> tuple[float, list[tuple[float, int, bytes]]]:
    """All requests by `CLIENTS` connections, each with one at a time."""
    encoded = [json.dumps(body).encode() for body in bodies]
    head = b"POST /score HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n"
    messages = [head % len(body) + body for body in encoded]
    answers, numbers = [None] * len(messages), iter(range(len(messages)))

    async def client():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            started = time.perf_counter()
            writer.write(messages[number])
            answer = await reader.readuntil(b"\r\n\r\n")
            size = int(re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)[1])
            body = await reader.readexactly(size)
            answers[number] = time.perf_counter() - started, int(answer.split(b" ", 2)[1]), body
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(CLIENTS)])
    return time.perf_counter() - started, answers


def compare(answers: list[tuple[float, int, bytes]], expected: list[list[float]]) -> dict:
    """Errors, the largest difference of a score, quantiles of latency in milliseconds."""
    good = [json.loads(body)["scores"] if status == 200 else None for _, status, body in answers]
    pairs = [(own, other) for own, other in zip(good, expected, strict=True) if own is not None]
    wrong = sum(len(own) != len(other) for own, other in pairs)
    largest = max(np.abs(np.subtract(own, other)).max() for own, other in pairs if len(own) == len(other))
    quantiles = np.quantile([1000 * seconds for seconds, _, _ in answers], (0.5, 0.99, 1))
    return {
        "requests": len(answers), "errors": sum(own is None for own in good), "wrong_numbers_of_scores": wrong,
        "largest_difference": float(largest),
        **dict(zip(("p50_ms", "p99_ms", "longest_ms"), map(float, quantiles), strict=True)),
    }  # fmt: skip


def start_player(function, *arguments):
    """A process of its own, and the connection to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(*arguments, theirs), daemon=True)
    process.start()
    return process, ours


def start_service(workdir: str) -> tuple[subprocess.Popen, int]:
    """The service, ready."""
    command = [sys.executable, "-m", "scpo_jax.main", "serve", f"--model={workdir}", "--port=0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    port = None
    for line in process.stderr:
        print(line, end="", flush=True)
        address = re.search(r"http://127.0.0.1:(\d+)", line)
        port = int(address[1]) if address else port
        if line.startswith("ready"):
            return process, port
    raise SystemExit("the service did not start")


def core_seconds(pid: int) -> float:
    """What a process has used of the cores so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def metrics(port: int) -> dict[str, float]:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="a finished run with two groups or more")
    parser.add_argument("--requests", type=int, default=10_000, help="half with 16 texts, half with one")
    parser.add_argument("--output", help="write the figures as JSON to this file")
    flags = parser.parse_args(arguments)
    from scpo_jax.workdir import Workdir

    profiles = profiles_of(sorted(Workdir(flags.workdir).groups("scpo")))
    half = flags.requests // 2
    many = make_requests(flags.workdir, profiles, half, TEXTS, seed=1)
    single = make_requests(flags.workdir, profiles, flags.requests - half, 1, seed=2)
    alone, asked = start_player(offline, flags.workdir, many + single)
    asked.recv()
    print("offline is ready", flush=True)
    first = request(asked, True)
    service, port = start_service(flags.workdir)
    player, load_of = start_player(clients, port)
    found = {"profiles": profiles, "load_before": os.getloadavg()[0]}
    try:
        request(load_of, make_requests(flags.workdir, profiles, WARM, TEXTS, seed=3))
        rates = {}
        for name, bodies, expected in (("16 texts", many, first[2][:half]), ("1 text", single, first[2][half:])):
            before = [core_seconds(process.pid) for process in (service, player)]
            seconds, answers = request(load_of, bodies)
            used = [core_seconds(p.pid) - was for p, was in zip((service, player), before, strict=True)]
            texts = sum(len(body["texts"]) for body in bodies)
            rates[name] = texts / seconds
            found[name] = compare(answers, expected) | {"texts_per_second": rates[name], "seconds": seconds}
            found[name]["core_ms_per_text"] = {"service": 1000 * used[0] / texts, "clients": 1000 * used[1] / texts}
        found["compilations"] = metrics(port)["scpo_serve_compilations_total"]
    finally:
        service.send_signal(signal.SIGTERM)
        found["exit_code"] = service.wait()
        player.kill()
    again = request(asked, True)
    alone.kill()
    texts = len(many) * TEXTS + len(single)
    offline_rates = [texts / run[0] for run in (first, again)]
    found["offline_texts_per_second"] = offline_rates
    found["offline_core_ms_per_text"] = [1000 * run[1] / texts for run in (first, again)]
    found["share_of_offline"] = {name: rate / np.mean(offline_rates) for name, rate in rates.items()}
    print(json.dumps(found, indent=1))
    if flags.output:
        pathlib.Path(flags.output).write_text(json.dumps(found, indent=1) + "\n")
    return found


def request(connection, value):
    connection.send(value)
    return connection.recv()


if __name__ == "__main__":
    main()
