"""Google Cloud's notices that it is about to take a virtual machine away, as the machine's metadata server has them.

A notice comes a minute or more ahead, and only to who asks (cloud.google.com/compute/docs/metadata, "maintenance event
notices"; for spot machines "detect preemption"). A machine that is moved while it runs, MIGRATE, is not taken away.
"""

import contextlib
import http.client
import os
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

import tqdm

HOST = "metadata.google.internal"
KINDS = {  # what the server is asked for -> what it can answer, the notice last
    "maintenance-event": ("NONE", "MIGRATE_ON_HOST_MAINTENANCE", "TERMINATE_ON_HOST_MAINTENANCE"),
    "preempted": ("FALSE", "TRUE"),
}
SECONDS_TO_ANSWER = 60  # the server does so at once when something changes, and after so long when nothing does
SECONDS_MORE = 10  # until it counts as silent
SECONDS_BETWEEN = 1.0  # two questions, twice as many after each that failed
SECONDS_AT_MOST = 30.0


def are_given() -> bool:
    """Whether this is a machine of Google Cloud; jax, once imported, knows it of those with TPUs."""
    return any(os.environ.get(name) for name in ("GCE_METADATA_HOST", "TPU_ML_PLATFORM"))


def watch(act: Callable[[], None]) -> None:
    """Calls `act` when a notice comes, from a thread of its own; one that is there already is only said."""
    host = os.environ.get("GCE_METADATA_HOST") or HOST
    for kind in KINDS:
        threading.Thread(target=_watch, args=[host, kind, act], daemon=True).start()


def _watch(host: str, kind: str, act: Callable[[], None]) -> None:
    before, notice = None, KINDS[kind][-1]
    for value in _answers(host, kind):
        if value == notice and before != notice:
            line = f"Google Cloud is about to take this machine away ({kind} {value})"
            if before is not None:
                _say(line)
                return act()
            _say(f"{line}, as it was before this command began: the run goes on, and saves its states as usual")
        before = value


def _say(line: str) -> None:
    """Prints a line of news, on whichever process: the others have other machines."""
    tqdm.tqdm.write(line, file=sys.stderr)


def _answers(host: str, kind: str) -> Iterator[str]:
    """What the server answers, whether or not it has changed, for ever; where it fails it is asked again later."""
    tag, pause = "0", SECONDS_BETWEEN
    while True:
        try:
            value, tag = _ask(host, kind, tag)
        except (OSError, http.client.HTTPException, ValueError):
            pause = min(2 * pause, SECONDS_AT_MOST)
        else:
            pause = SECONDS_BETWEEN
            yield value
        time.sleep(pause)


def _ask(host: str, kind: str, tag: str) -> tuple[str, str]:
    """(the value that follows the one of this tag, waited for, its own tag).

    Raises OSError, HTTPException and ValueError. `http.client` asks this host, and no proxy or other place.
    """
    query = {"wait_for_change": "true", "timeout_sec": SECONDS_TO_ANSWER, "last_etag": tag}
    place = f"/computeMetadata/v1/instance/{kind}?{urllib.parse.urlencode(query)}"
    connection = http.client.HTTPConnection(host, timeout=SECONDS_TO_ANSWER + SECONDS_MORE)
    with contextlib.closing(connection):
        connection.request("GET", place, headers={"Metadata-Flavor": "Google"})
        answer = connection.getresponse()
        value = answer.read(100).decode().strip()
    if answer.status != 200 or value not in KINDS[kind]:
        raise ValueError(f"{answer.status}: {value}")
    return value, answer.getheader("ETag", "0")
