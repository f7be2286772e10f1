"""The benchmark against the peers: what it computes of its figures, and a run of it on a tiny geometry."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.bench import throughput


def turn(seconds, units, tokens, computed, peak=2**30):
    return {"seconds": seconds, "units": units, "tokens": tokens, "computed": computed, "peak_bytes": peak}


OURS = [turn(2, 8, 800, 1000), turn(1, 8, 900, 1000), turn(4, 8, 700, 1000)]  # 4, 8 and 2 a second
PEER = [turn(8, 8, 800, 2000), turn(8, 8, 900, 2000), turn(8, 8, 700, 2000, 3 * 2**30)]  # 1 a second


def test_a_row_has_medians_over_the_rounds_and_ratios_within_them():
    row = throughput.summary(PEER, OURS)
    assert (row["per_second"], row["low"], row["high"]) == (1, 1, 1)
    assert row["ours_is"] == {"median": 4, "low": 2, "high": 8}
    assert row["tokens_per_second"] == 100
    assert row["padding"] == pytest.approx(0.6)
    assert row["peak_bytes"] == 3 * 2**30
    assert throughput.summary(OURS, OURS)["ours_is"] == {"median": 1, "low": 1, "high": 1}


def test_the_table_shows_every_contender():
    rows = {name: throughput.summary(turns, OURS) for name, turns in {"ours": OURS, "trl": PEER}.items()}
    text = throughput.table("training", "pairs", rows)
    assert [line.split()[0] for line in text.splitlines()] == ["training", "ours", "trl"]
    assert "4.00 x (2.00 - 8.00)" in text and "0.600" in text


def test_distinct_texts_keep_their_order():
    texts = [np.array(ids) for ids in ([3, 1], [2], [3, 1], [2, 0])]
    assert [ids.tolist() for ids in throughput.distinct(texts)] == [[3, 1], [2], [2, 0]]


def test_turns_are_spread_over_all_steps():
    assert throughput.spread(3, 2, 10) == [[0, 1], [4, 5], [8, 9]]


def test_random_words_have_the_lengths_of_prism():
    chosen, rejected = throughput.read_pairs(None, 100)
    lengths = [len(ids) for ids in (*chosen, *rejected)]
    assert 110 < np.mean(lengths) < 140 and max(lengths) <= 512 and max(map(max, chosen)) < 100


@pytest.mark.parity
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "trl"))), reason="needs torch and trl (the bench extra)"
)
def test_all_contenders_take_their_turns_on_a_tiny_geometry(tmp_path):
    command = [sys.executable, "-m", "tests.bench.throughput", "--tiny", "--rounds=2", "--steps=1", "--texts=24"]
    output = tmp_path / "x.json"
    subprocess.run([*command, "--vocab_size=300", f"--output={output}"], check=True, env=os.environ, timeout=600)
    found = json.loads(output.read_text())
    assert set(found["training"]) == {"ours", "trl", "trl tuned", "padded", "products"}
    assert set(found["scoring"]) == {"ours", "eager", "products"}
    assert found["largest_difference_of_scores"] < 1e-5
    own, peer, padded = (found["training"][name]["padding"] for name in ("ours", "trl", "padded"))
    assert own < peer < padded and found["training"]["products"]["padding"] == 0
    for kind in ("training", "scoring"):
        assert found[kind]["ours"]["per_second"] < found[kind]["products"]["per_second"], kind
