"""`scpo score` at scale: Parquet, streaming, resuming, the columns beside the scores."""

import tracemalloc
import types

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from scpo_jax import ref_columns, score_files
from scpo_jax import scpo as method
from tests.run_helpers import GROUPS, pairs, read_rows, refusal, scpo, snapshot, write_rows

COLUMNS = "--columns=weight,ref,difference,keep"
ADDED = ["score_chosen", "score_rejected", "ref_score_chosen", "ref_score_rejected", "difference", "keep", "weight"]


class LengthJudge:
    """A model that is not there: a text's score is the length of its response, more for a group."""

    tolerance, groups, method = 1e-4, {}, "global"
    default = types.SimpleNamespace(loaded=types.SimpleNamespace(card={}))

    def __init__(self, plus: float = 0.0):
        self.plus, self.calls = plus, []

    def score(self, prompts, responses, groups):
        self.calls.append(len(prompts))
        return np.array([len(r) + self.plus + len(g) for r, g in zip(responses, groups, strict=True)], np.float32)


def score(model, source, output, *flags) -> None:
    assert scpo("score", f"--model={model}", f"--input={source}", f"--output={output}", *flags) == 0


@pytest.fixture(scope="module")
def by_workdir(finished, tmp_path_factory):
    """Pairs with all columns, by the workdir of the finished run."""
    folder = tmp_path_factory.mktemp("scored")
    score(finished.workdir, finished.data, folder / "scored.jsonl", COLUMNS)
    return read_rows(folder / "scored.jsonl")


def test_columns_are_those_of_the_selection(by_workdir, finished):
    assert [list(row) for row in by_workdir] == [[*row, *ADDED] for row in pairs()]
    written = {row["pair_id"]: row for row in by_workdir}
    selection = pyarrow.parquet.read_table(finished.workdir / "selection.parquet").to_pylist()
    train = [row for row in selection if row["split"] == "train"]  # test pairs are kept by tau_test
    assert all(written[row["pair_id"]]["keep"] == row["keep"] for row in train)
    for row in selection:
        own = written[row["pair_id"]]
        names = {"ref_score_chosen": "ref_chosen", "ref_score_rejected": "ref_rejected", "weight": "weight"}
        for name, theirs in names.items():
            assert own[name] == pytest.approx(row[theirs], abs=2e-5)
        assert own["difference"] == pytest.approx(row["ref_chosen"] - row["ref_rejected"], abs=2e-5)
        assert abs(own["score_chosen"] - own["ref_score_chosen"]) > 1e-6
    assert all(row["score_chosen"] == row["ref_score_chosen"] for row in by_workdir if row["group"] not in GROUPS)


def test_a_reference_of_its_own_and_parquet(by_workdir, finished, tmp_path, capsys):
    """A group's RM beside the global one, over Parquet, gives what the workdir gives over JSON lines."""
    rows = [row for row in pairs() if row["group"] == GROUPS[1]]
    source, output = tmp_path / "rows.parquet", tmp_path / "scored.PARQUET"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    folder = finished.workdir / "checkpoints"
    model = folder / "scpo" / "cote-d-ivoire"
    flags = [f"--model={model}", f"--input={source}", f"--output={output}", COLUMNS]
    assert "name the global RM, --reference=M" in refusal(capsys, "score", *flags)
    score(model, source, output, COLUMNS, f"--reference={folder / 'global'}")
    table = pyarrow.parquet.read_table(output)
    assert table.schema.names == [*rows[0], *ADDED] and not output.with_name("scored.PARQUET.parts").exists()
    assert str(table.schema.field("score_chosen").type) == "float" and str(table.schema.field("keep").type) == "bool"
    expected = [row for row in by_workdir if row["group"] == GROUPS[1]]
    for found, row in zip(table.to_pylist(), expected, strict=True):
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        assert all(found[name] == row[name] for name in row.keys() - numbers.keys())
        assert [found[name] for name in numbers] == pytest.approx(list(numbers.values()), abs=2e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--columns=ref,p"], "--columns: unknown 'p'; there are ref, difference, keep, weight"),
        (["--tau=0.5"], "say how --columns are computed"),
        (["--columns=keep", "--tau=1.5"], "--tau=1.5: it is a probability"),
        (["--columns=keep", "--beta=0"], "--beta=0.0: it has to be above 0"),
        (["--columns=ref", "--reference=nobody/nothing"], "nor from the hub"),
        (["--columns=ref,keep"], "rows.jsonl:2: --columns=keep: they are of pairs, and this row is a text"),
        (["--columns=ref"], "rows.jsonl:2: the row has a field 'ref_score', which --columns would write"),
    ],
)
def test_wrong_columns(flags, message, finished, tmp_path, capsys):
    rows = [pairs()[0], {"prompt": "p", "response": "r", "ref_score": 1}]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    arguments = [f"--model={finished.workdir}", f"--input={source}", f"--output={tmp_path / 'out'}"]
    assert message in refusal(capsys, "score", *arguments, *flags)
    assert not (tmp_path / "out").exists()


def columns_of(judge, tau=0.7, beta=1.1) -> ref_columns.Columns:
    return ref_columns.Columns(("ref", "keep", "weight"), judge, None, tau, beta, (0.7, 1.1))


def test_tau_and_beta():
    columns = columns_of(LengthJudge(), 0.9, 2.0)
    refs = np.float32(1.5), np.float32(0.0)
    assert columns.of_row(refs, "")["keep"] and not columns_of(LengthJudge()).of_row(refs, "")["keep"]
    values = columns.of_row(refs[::-1], "")
    assert values["weight"] == pytest.approx(float(method.weight(*refs[::-1], 2.0))) and values["difference"] == -1.5
    assert not columns.same("weight", values["weight"] + 0.01, values, "", 1e-4)
    assert not columns.same("keep", False, values, "", 1e-4)


ROWS = [
    {"prompt": "a", "response": "b" * i, "n": i, "x": 1 if i < 4 else 0.5, **({"group": "G"} if i % 2 else {})}
    for i in range(1, 11)
]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(score_files, "ROWS_PER_CHUNK", 3)


def scored(judge, rows, output, columns=None, calls: int | None = None) -> None:
    """Scores rows; with `calls` it is interrupted after so many chunks."""
    source = write_rows(output.parent / "rows.jsonl", rows) if isinstance(rows, list) else rows
    if calls is not None:
        judge.score = failing_after(judge.score, calls)
    score_files.score_file(judge, str(source), str(output), columns)


def failing_after(function, calls: int):
    """`function`, which from a number of calls on is interrupted."""
    left = iter(range(calls))

    def call(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    return call


def content(path):
    """What an output holds, in its order."""
    return pyarrow.parquet.read_table(path).to_pylist() if path.suffix == ".parquet" else path.read_text()


@pytest.mark.parametrize("chunks", [0, 1, 3])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_stopped_it_goes_on_after_its_last_chunk(suffix, chunks, small_chunks, tmp_path, capsys):
    whole, output, judge = tmp_path / f"whole.{suffix}", tmp_path / f"scored.{suffix}", LengthJudge()
    scored(LengthJudge(), ROWS, whole)
    with pytest.raises(KeyboardInterrupt):
        scored(LengthJudge(), ROWS, output, calls=chunks)
    assert output.exists() == (suffix == "jsonl" and chunks > 0)  # Parquet is whole or not there
    if output.exists():
        with output.open("ab") as file:
            file.write(b'{"prompt": "a", "respon')  # what a crash cuts off
    scored(judge, ROWS, output)
    assert content(output) == content(whole)
    checked = [3 * chunks] if chunks else []
    assert judge.calls == [*checked, *([3, 3, 3, 1][chunks:])]
    before = snapshot(tmp_path)
    scored(judge, tmp_path / "rows.jsonl", output)
    assert "nothing to do" in capsys.readouterr().err and snapshot(tmp_path) == before


def test_rows_without_a_field_have_null_in_parquet(tmp_path):
    scored(LengthJudge(), [*ROWS, {"prompt": "a", "chosen": "bc", "rejected": "d"}], tmp_path / "scored.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "scored.parquet")
    assert table.column("score").to_pylist() == [*(float(row["n"] + 1 * ("group" in row)) for row in ROWS), None]
    assert table.column("score_chosen").to_pylist() == [None] * 10 + [2.0]
    assert table.column("x").to_pylist()[:5] == [1.0, 1.0, 1.0, 0.5, 0.5]
    assert table.column("group").to_pylist()[:2] == ["G", None]


@pytest.mark.parametrize("finished_output", [True, False])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_is_of_something_else_is_refused(suffix, finished_output, small_chunks, tmp_path):
    output, judge = tmp_path / f"scored.{suffix}", LengthJudge()
    if finished_output:
        scored(judge, ROWS, output)
    else:
        with pytest.raises(KeyboardInterrupt):
            scored(judge, ROWS, output, calls=2)
    before = snapshot(tmp_path)
    others = {
        "is not of this input": (LengthJudge(), [ROWS[0] | {"n": 0}, *ROWS[1:]], None),
        "or of other --columns": (
            LengthJudge(),
            ROWS,
            ref_columns.Columns(("ref",), judge, None, None, None, (0.7, 1)),
        ),
        "holds scores of another model": (LengthJudge(plus=0.01), ROWS, None),
    }
    for message, (other, rows, columns) in others.items():
        with pytest.raises(score_files.InputError, match=message):
            scored(other, rows, output, columns)
    write_rows(tmp_path / "rows.jsonl", ROWS)
    assert {k: v and v[1] for k, v in snapshot(tmp_path).items()} == {k: v and v[1] for k, v in before.items()}


def test_columns_by_another_rule_are_refused(small_chunks, tmp_path):
    output, rows = tmp_path / "scored.jsonl", [{"prompt": "", "chosen": "c" * i, "rejected": "ccc"} for i in range(9)]
    judge = LengthJudge()
    scored(judge, rows, output, columns_of(judge))
    before = output.read_bytes()
    for other in (columns_of(judge, tau=0.95), columns_of(judge, beta=1.2)):
        with pytest.raises(score_files.InputError, match="another model"):
            scored(judge, rows, output, other)
    scored(judge, rows, output, columns_of(judge))
    assert output.read_bytes() == before


def test_parquet_types_survive(small_chunks, tmp_path):
    """Also through a resumption: times, NaN and what else JSON has no form for."""
    source, output = tmp_path / "rows.parquet", tmp_path / "scored.parquet"
    columns = {
        "prompt": pyarrow.array(["p"] * 7).dictionary_encode(),
        "response": pyarrow.array(["r"] * 7, pyarrow.large_string()),
        "at": pyarrow.array([1.7e9] * 7).cast(pyarrow.int64()).cast(pyarrow.timestamp("s")),
        "x": [float("nan"), 1.0, None, 0.5, 1.0, 2.0, float("nan")],
        "score": ["old"] * 7,
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), source)
    with pytest.raises(KeyboardInterrupt):
        scored(LengthJudge(), source, output, calls=1)
    scored(LengthJudge(), source, output)
    found, given = pyarrow.parquet.read_table(output), pyarrow.parquet.read_table(source)
    assert found.column_names == ["prompt", "response", "at", "x", "score"]
    kept, before = (table.drop_columns("score").to_pylist() for table in (found, given))
    assert str(kept) == str(before) and found.schema.types[:2] == given.schema.types[:2]  # text: NaN is not NaN
    assert found.column("score").to_pylist() == [1.0] * 7
    with pytest.raises(score_files.InputError, match="row 1: JSON lines cannot hold this row"):
        scored(LengthJudge(), source, tmp_path / "scored.jsonl")


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        (
            [{"prompt": "p", "response": "r", "x": 1}, {"prompt": "p", "response": "r", "x": [1]}],
            "o.parquet",
            "one type",
        ),
        ([{"prompt": "p", "response": "r", "x": {}}], "o.parquet", "Parquet cannot hold"),
        (
            [{"prompt": "p", "response": "r"}, {"prompt": "p", "response": 3}],
            "o.parquet",
            "rows.jsonl:2: field 'response'",
        ),
    ],
)
def test_what_cannot_be_written(rows, name, message, tmp_path):
    with pytest.raises(score_files.InputError, match=message):
        scored(LengthJudge(), rows, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("text", ['"x": 1e999', '"x": "\\ud800"'])
def test_what_json_or_utf8_has_no_form_for(text, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "response": "r", ' + text + "}\n")
    with pytest.raises(score_files.InputError, match="rows.jsonl:1: JSON lines cannot hold this row"):
        scored(LengthJudge(), tmp_path / "rows.jsonl", tmp_path / "out.jsonl")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_larger_than_memory(suffix, tmp_path, monkeypatch):
    """What Python holds at its peak is a small part of the file."""
    monkeypatch.setattr(score_files, "ROWS_PER_CHUNK", 64)
    source, output = tmp_path / f"rows.{suffix}", tmp_path / f"scored.{suffix}"
    rows = [{"prompt": "p" * 10000, "response": f"r{i}"} for i in range(1500)]
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source, row_group_size=100)
    else:
        write_rows(source, rows)
    del rows
    tracemalloc.start()
    for _ in range(2):  # the second time it is compared
        score_files.score_file(LengthJudge(), str(source), str(output))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6 and output.stat().st_size > (15e6 if suffix == "jsonl" else 0)
