"""`scpo serve`: a reward model, or all blends of a workdir's, as an HTTP service."""

import ipaddress
import os
import signal
import socket

import uvicorn

from scpo_jax import logs, serve_app, steering, workdir
from scpo_jax.data.fields import one_line
from scpo_jax.errors import InputError
from scpo_jax.judge import open_judge
from scpo_jax.serve_engine import Engine

TOKEN = "SCPO_SERVE_TOKEN"  # environment variable: who asks has to know it
SECONDS_IDLE = 75  # until a connection on which nothing is asked is closed


def serve(name: str, *, host: str, port: int, profile: str | None, **choices) -> None:
    """Serves M until SIGTERM or SIGINT, then answers what has been asked and returns. Raises InputError.

    `profile` is that of requests that name none; `choices` are those of `open_judge`.
    """
    token = token_of(os.environ)
    with listen(host, port, token) as listener:
        engine = Engine(open_judge(name, **choices))
        default = default_profile(profile, name, engine.blends.groups)
        shown = f"[{host}]" if ":" in host else host
        logs.say(f"serving {name} at http://{shown}:{listener.getsockname()[1]}, described in /openapi.json")
        run(engine, listener, default, token)


def run(engine: Engine, listener: socket.socket, default: steering.Profile, token: str | None) -> None:
    """Serves on a socket until a signal says to stop."""
    config = uvicorn.Config(
        serve_app.create(engine, default, token), lifespan="off", ws="none", access_log=False, log_level="error",
        server_header=False, timeout_keep_alive=SECONDS_IDLE,
    )  # fmt: skip
    server = uvicorn.Server(config)
    engine.start(on_failure=lambda: setattr(server, "should_exit", True))
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn stops by them, then raises them again
        signal.signal(number, lambda *_: None)
    try:
        server.run([listener])
    finally:
        engine.close()
    if engine.error:
        raise engine.error


def name_of(model: str | None, folder: str | None) -> str:
    """M where `--model`, `--workdir` or both are given. Raises InputError."""
    if folder is None:
        return model
    parts = (folder, str(workdir.Workdir(folder).global_checkpoint))
    if model is not None and os.path.realpath(model) not in map(os.path.realpath, parts):
        raise InputError(f"--model={model} is another model than that of --workdir={folder}: give one of them")
    return folder


def token_of(environment) -> str | None:
    """The token that the environment names. Raises InputError if it is unfit."""
    token = environment.get(TOKEN)
    if token is not None and (not token or not token.isascii() or not token.isprintable() or " " in token):
        raise InputError(f"{TOKEN} has to be of printable ASCII characters, without spaces; unset it to have no token")
    return token


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """A listening socket. Raises InputError, also where others than this machine could ask without a token."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port={port}: it has to be from 0 (any that is free) to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host={host}: no address of this machine ({one_line(error)})") from error
    if token is None and not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
        raise InputError(f"--host={host} lets others ask: name a token in {TOKEN}, or leave it at 127.0.0.1")
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise InputError(f"--host={host} --port={port}: cannot listen there ({error.strerror})") from error
    return listener


def default_profile(profile: str | None, name: str, groups) -> steering.Profile:
    """The profile of requests that name none. Raises InputError."""
    if profile is None:
        return {}
    if not workdir.is_workdir(name):
        raise InputError(f"--profile blends the RMs of a finished workdir, and {name} is none: name one")
    return steering.parse(profile, groups)
