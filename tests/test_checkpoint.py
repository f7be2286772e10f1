"""Checkpoints hold all that is needed, bitwise; what is damaged or of another version is refused in one line."""

import json
import sys
import types

import jax
import numpy as np
import pytest

from scpo_jax import checkpoint
from scpo_jax.checkpoint import Loaded
from scpo_jax.data import vocabulary
from scpo_jax.errors import InputError
from scpo_jax.training_state import TrainingState
from tests import model_helpers

CARD = {"method": "scpo", "group": "Côte d'Ivoire", "max_length": 64, "score_mean": 0.25, "pairs": 3}


@pytest.fixture(scope="module", params=["bert", "v3"])
def loaded(request):
    tokenizer = vocabulary.make_tokenizer(["a warm answer", "Straße 日本"], 60, 64)
    return Loaded(*model_helpers.make(request.param), tokenizer, CARD)


def test_a_round_trip(loaded, tmp_path):
    checkpoint.save(tmp_path / "model", loaded)
    again = checkpoint.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    assert jax.tree.structure(again.params) == jax.tree.structure(loaded.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(again.params)} == {np.dtype("float32")}
    assert again.card == CARD == checkpoint.load_card(tmp_path / "model")
    assert (again.model.family, again.model.config) == (loaded.model.family, loaded.model.config)
    texts = ["A warm Straße", "日本 unknown", ""]
    ours, theirs = (model.tokenizer(texts, texts)["input_ids"] for model in (again, loaded))
    assert ours == theirs and again.tokenizer.pad_token_id == loaded.tokenizer.pad_token_id


def test_saving_replaces(loaded, tmp_path):
    checkpoint.save(tmp_path / "model", loaded)
    more = jax.tree.map(lambda leaf: leaf + 1, loaded.params)
    checkpoint.save(tmp_path / "model", loaded._replace(params=more, card=CARD | {"pairs": 4}))
    again = checkpoint.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, again.params, more)
    assert again.card["pairs"] == 4 and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_checkpoint(tmp_path):
    assert not checkpoint.is_checkpoint(tmp_path) and checkpoint.load_card(tmp_path / "none") == {}
    with pytest.raises(InputError, match="is not a checkpoint of scpo"):
        checkpoint.load(tmp_path)


def refusal(folder) -> str:
    with pytest.raises(InputError) as caught:
        checkpoint.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_another_schema_is_refused(loaded, tmp_path):
    checkpoint.save(tmp_path / "model", loaded)
    path = tmp_path / "model" / "model" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    assert "has checkpoint schema 99, this version reads 1" in refusal(tmp_path / "model")


@pytest.mark.parametrize("item", ["params", "model"])
def test_a_damaged_checkpoint_is_refused(item, loaded, tmp_path):
    checkpoint.save(tmp_path / "model", loaded)
    for file in (tmp_path / "model" / item).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "damaged checkpoint" in refusal(tmp_path / "model")


def test_only_reads_of_a_restore_that_failed_end_quietly(monkeypatch):
    class Late:
        def __init__(self, message):
            self.message = message

        def __del__(self):
            raise RuntimeError(self.message)

    def give_up(file):
        """A coroutine of this file is dropped while it waits, and raises."""
        names = {}
        source = "async def read(pause):\n    try:\n        await pause\n    finally:\n        raise OSError('a read')"
        exec(compile(source, file, "exec"), names)
        names["read"](types.coroutine(lambda: (yield))()).send(None)

    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(str(unraisable.exc_value)))
    for message in ("Event loop is closed", "another"):
        Late(message)
    assert said == ["Event loop is closed", "another"]
    for _ in range(2):
        checkpoint.expect_failures()
        for message in ("Event loop is closed", "another"):
            Late(message)
        for package in ("orbax", "other"):
            give_up(f"site-packages/{package}/reading.py")
    assert said[2:] == ["another", "a read"] * 2


def test_a_tokenizer_cannot_write_elsewhere(loaded, tmp_path):
    checkpoint.save(tmp_path / "model", loaded)
    path = tmp_path / "model" / "model" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer": {"../escaped": "QQ=="}}))
    assert "'../escaped': refused" in str(pytest.raises(InputError, checkpoint.load, tmp_path / "model").value)


def state_of(value: float) -> dict:
    return {"params": {"w": np.full(5, value, np.float32)}, "step": np.int32(value)}


def test_training_states(tmp_path):
    states = TrainingState(tmp_path / "states", keep=2, every=2)
    assert states.restore(state_of(0))[0] == 0
    for step in (2, 4, 6):
        states.save(step, state_of(step))
    states.close()
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["4", "6"]
    again = TrainingState(tmp_path / "states", keep=2, every=2)
    step, state = again.restore(state_of(0))
    again.close()
    assert step == 6 and state["step"] == 6 and state["step"].dtype == np.int32
    np.testing.assert_array_equal(state["params"]["w"], np.full(5, 6, np.float32))
