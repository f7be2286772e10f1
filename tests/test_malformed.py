"""Whatever is wrong with an input, the command says so in one line with exit code 2 and leaves everything as it was."""

import faulthandler
import os

import pytest

from scpo_jax.data import chat
from tests.faults.corpus import CASES
from tests.faults.damage import Place
from tests.faults.whole import Whole
from tests.run_helpers import scpo

SECONDS = 200.0  # after which a command counts as hanging, and ends the tests


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return Whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def place(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    return Place(tmp_path, inputs)


def state(folder) -> dict:
    """Every path under a folder with its time and size."""
    found = {}
    for path in sorted(folder.rglob("*")):
        own = os.lstat(path)
        found[str(path)] = own.st_mtime_ns, own.st_size
    return found


def refusal(capfd, arguments, *folders) -> str:
    """The one line with which a command ends; `folders` are as they were."""
    before = [state(folder) for folder in folders]
    capfd.readouterr()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        code = scpo(*arguments)
    finally:
        faulthandler.cancel_dump_traceback_later()
    captured = capfd.readouterr()
    assert code == 2, captured.err
    assert captured.out == "" and "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert [line.startswith("scpo: error: ") for line in lines] == [True], captured.err
    assert lines[0].isprintable() and len(lines[0]) < 5000
    assert [state(folder) for folder in folders] == before
    return lines[0]


def test_the_corpus_is_large_and_its_names_differ():
    assert len(CASES) >= 200 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_malformed_inputs(case, place, capfd):
    arguments = case.make(place)
    line = refusal(capfd, arguments, place.folder, place.whole.folder)
    assert case.named in line
    assert not list(place.folder.rglob("ran"))
