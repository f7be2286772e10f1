"""NaN in a batch, in a model and in what a run stored: found and named; the run goes on, or stops, as configured."""

import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scpo_jax import checkpoint
from scpo_jax.errors import InputError
from scpo_jax.models import hf, weights
from scpo_jax.workdir import Workdir
from tests import model_helpers
from tests.faults import whole
from tests.run_helpers import read_rows, refusal, snapshot


def unfinish(world, *stages: str) -> None:
    """The run goes on with these stages."""
    record = world.record()
    for name in stages:
        del record["stages"][name]["finished"]
    Workdir.write_json(world.workdir / "run.json", record)


def refused_run(capsys, world, *flags) -> str:
    return refusal(capsys, "run", f"--config={world.config}", f"--workdir={world.workdir}", *flags)


def set_value(path, column: str, row: int, value: float) -> dict:
    """Changes a number of a Parquet file; the row as it was."""
    table = pq.read_table(path)
    values = table[column].to_numpy().copy()
    values[row] = value
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, pa.array(values, table.schema.field(column).type)), path)
    return table.slice(row, 1).to_pylist()[0]


@pytest.fixture
def poisoned(copy):
    """(a run whose RMs of scpo are to be trained again, a kept training pair of it whose margin is NaN)."""
    kept = [
        row["pair_id"]
        for row in pq.read_table(copy.workdir / "selection.parquet").to_pylist()
        if row["keep"] and row["split"] == "train"
    ]
    path = copy.workdir / "data" / "pairs.parquet"
    table = pq.read_table(path)
    margins = [float("nan") if pair_id == kept[0] else 0.0 for pair_id in table["pair_id"].to_pylist()]
    pq.write_table(table.append_column("margin", pa.array(margins)), path)
    shutil.rmtree(copy.workdir / "checkpoints" / "scpo")
    unfinish(copy, "train")
    return copy, kept[0]


def test_a_batch_is_skipped_and_its_pairs_are_named(poisoned, capsys):
    world, pair_id = poisoned
    assert world.run("--stages=train") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if " is skipped" in line]
    assert lines and all(pair_id in line.split("its pairs: ")[1].split(", ") for line in lines)
    rows = [row for row in read_rows(world.workdir / "metrics.jsonl") if row["training"].startswith("scpo/")]
    assert all(np.isfinite(value) for row in rows for value in row.values() if not isinstance(value, str))
    for path in (world.workdir / "checkpoints" / "scpo").iterdir():
        checkpoint.load(path)


def test_a_run_stops_at_the_first_if_so_configured(poisoned, capsys):
    world, pair_id = poisoned
    assert world.run("--stages=train", "--config.train.max_skipped=1") == 2
    lines = capsys.readouterr().err.splitlines()
    assert pair_id in next(line for line in lines if " is skipped" in line)
    assert "config.train.max_skipped" in lines[-1] and lines[-1].startswith("scpo: error: train scpo/")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_of_a_model_is_named(value, tmp_path):
    model, params = model_helpers.make("bert")
    params = jax.tree.map(np.array, params)
    params["layers"]["attention"]["query"]["kernel"][1, 3, 2] = value
    hf.save(model, params, tmp_path)
    found = str(pytest.raises(InputError, hf.load, tmp_path).value)
    assert f"{tmp_path}: " in found and "bert.encoder.layer.1.attention.self.query.weight (1 of 4096 values" in found
    assert "the first at [2, 3]" in found


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_parameter_of_a_checkpoint_is_named(value, tmp_path):
    made = whole.Whole(tmp_path)
    loaded = checkpoint.load(made.checkpoint)
    params = jax.tree.map(np.array, loaded.params)
    params["score"]["kernel"][3, 0] = value
    checkpoint.save(tmp_path / "rm", loaded._replace(params=params))
    found = str(pytest.raises(InputError, checkpoint.load, tmp_path / "rm").value)
    assert "/rm: its parameters are not finite: score/kernel (1 of 16 values, the first at [3, 0])" in found


def test_large_values_are_finite():
    assert weights.not_finite("w", np.full((5, 5), 3e38, np.float32)) == ""
    assert weights.not_finite("w", np.full(3, np.inf, np.float16)) == "w (3 of 3 values, the first at [0])"


@pytest.mark.parametrize("stages", [("select",), ("evaluate",)])
def test_a_stored_score_is_named(stages, copy, capsys):
    unfinish(copy, *stages)
    tokens = pq.read_table(copy.workdir / "data" / "pairs.parquet").to_pylist()
    stored = copy.workdir / "scores" / "global.parquet"
    set_value(stored, "reward", 5, np.nan)
    before = contents(copy)
    found = refused_run(capsys, copy)
    assert f"{stored} has no finite score of 1 of " in found
    assert any(f"{row[side]!r}" in found for row in tokens for side in ("chosen", "rejected"))
    assert contents(copy) == before


def contents(world) -> dict:
    """Content of every file of a workdir."""
    return {path: own[1] for path, own in snapshot(world.workdir).items() if own}


@pytest.mark.parametrize("column", ["weight", "ref_chosen"])
def test_a_number_of_the_selection_is_named(column, copy, capsys):
    unfinish(copy, "train")
    row = set_value(copy.workdir / "selection.parquet", column, 2, np.nan)
    found = refused_run(capsys, copy)
    assert f"selection.parquet: pair {row['pair_id']!r} has {column} nan" in found
    assert (copy.workdir / "checkpoints" / "scpo").is_dir()


@pytest.mark.parametrize("damage", ["truncated", "removed", "other columns", "a text is missing"])
def test_stored_scores_that_are_lost(damage, copy, capsys):
    unfinish(copy, "select")
    stored = copy.workdir / "scores" / "global.parquet"
    content = stored.read_bytes()
    {
        "truncated": lambda: stored.write_bytes(content[:-30]),
        "removed": stored.unlink,
        "other columns": lambda: pq.write_table(pa.table({"a": [1]}), stored),
        "a text is missing": lambda: pq.write_table(pq.read_table(stored).slice(1), stored),
    }[damage]()
    assert "scores/global.parquet" in refused_run(capsys, copy)
