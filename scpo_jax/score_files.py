"""`scpo score`: a file of texts or pairs of any size in, the same rows with their scores out.

In memory are `ROWS_PER_CHUNK` rows for each process, with their texts, the models, and a row group of a Parquet file.
The input is read twice: first to find what is wrong with it before anything is written.
"""

import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
from etils import epath

from scpo_jax import distributed, files, logs, ref_columns, row_files
from scpo_jax.data import fields, jsonl, records
from scpo_jax.data.encoding import Prompt
from scpo_jax.errors import InputError
from scpo_jax.judge import Judge
from scpo_jax.ref_columns import Columns

ROWS_PER_CHUNK = 2048  # rows that a process scores at once; they are written together
CHECKED_ROWS = 16  # rows of an unfinished output that are scored again, at least, if it has as many
SCORES = ("score", "score_chosen", "score_rejected")
TYPES = {name: pyarrow.float32() for name in (*SCORES, *ref_columns.FIELDS)} | {"keep": pyarrow.bool_()}


class Row(NamedTuple):
    """A row of the input."""

    where: str  # file and line
    fields: dict
    texts: list[tuple[Prompt, str]]  # of the one response, or of chosen and rejected
    group: str


class Content(NamedTuple):
    """What a first reading says of an input."""

    rows: int
    digest: str
    schema: pyarrow.Schema | None  # of a Parquet output


def score_file(judge: Judge, source: str, output: str, columns: Columns | None = None) -> None:
    """Writes every row of `source` with its score(s), in order; goes on where an interrupted output of it ends.

    A row is an object with `prompt` and `response`, or with `prompt`, `chosen` and `rejected`; `group`, if it names a
    group of a workdir, chooses that group's RM, unless there is a profile. An output that ends in .parquet is written
    as Parquet, any other as JSON lines. Raises InputError before anything is written if a row is malformed.
    """
    path, parquet = files.output_path(output), pathlib.Path(output).suffix.lower() == ".parquet"
    content = _first_reading(source, columns, parquet)
    distributed.check_same(f"--input={source}", content.digest)
    file = row_files.ParquetParts(path, content.schema) if parquet else row_files.JsonLines(path)
    found = distributed.on_writer("the output", lambda: _finished(file, path, source, columns))
    _check_same_model(judge, columns, path, found["samples"])
    try:
        if found["done"] < content.rows:
            _score_rest(judge, columns, source, file, found["done"], content.rows)
            logs.say(f"wrote {output}: {content.rows} rows")
        else:
            logs.say(f"{output} already has the scores of all {content.rows} rows of {source}, nothing to do")
        if distributed.is_writer():
            file.close()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(
            f"--output={output} cannot be written ({fields.one_line(error)}); the same command goes on from there"
        ) from error


def _score_rest(judge: Judge, columns: Columns | None, source: str, file, done: int, total: int) -> None:
    """Scores and appends the rows after the first `done`; process 0 writes."""
    progress = logs.Progress(total, "score", "row")
    progress.add(done)
    rest = itertools.islice(_rows(source, columns), done, None)
    for rows in row_files.chunks(rest, ROWS_PER_CHUNK * distributed.count()):
        scored = [row.fields | own for row, own in zip(rows, score_rows(judge, columns, rows), strict=True)]
        if distributed.is_writer():
            file.append(scored)
        progress.add(len(rows))
    progress.close()


def _rows(source: str, columns: Columns | None) -> Iterator[Row]:
    """The rows of an input. Raises InputError at the first that is malformed."""
    for where, row in records.stream_rows(source):
        if isinstance(row, InputError):
            raise row
        texts = texts_of(row, where)
        if columns:
            columns.check(row, len(texts), where)
        yield Row(where, row, texts, str(row.get("group") or ""))


def texts_of(row: dict, where: str) -> list[tuple[Prompt, str]]:
    """(prompt, response) of the one response, or of chosen and rejected. Raises InputError."""
    if "chosen" in row or "rejected" in row:
        prompt, *responses = jsonl.pair_texts(row, {name: name for name in jsonl.NAMES}, where)
    else:
        prompt, responses = jsonl.prompt(row, "prompt", where), [fields.text(row, "response", where)]
    return [(prompt, response) for response in responses]


def _first_reading(source: str, columns: Columns | None, parquet: bool) -> Content:
    """Reads an input to its end. Raises InputError where it, or a row of it, cannot be scored or written."""
    of_parquet = pathlib.Path(source).suffix.lower() == ".parquet"
    rows, added, schema, digest = 0, {}, None, hashlib.sha256()
    progress = logs.Progress(None, "read", "row")
    for chunk in row_files.chunks(_rows(source, columns), records.ROWS_AT_ONCE):
        for row in chunk:
            line = _comparable(row.fields) if parquet else row_files.checked_json_line(row.fields, row.where)
            digest.update(line.encode())
            added |= dict.fromkeys(_added(row, columns))
        rows += len(chunk)
        if parquet and not of_parquet:
            schema = row_files.infer_schema(schema, [row.fields for row in chunk])
        progress.add(len(chunk))
    progress.close()
    if parquet:
        if of_parquet:
            with epath.Path(source).open("rb") as file:
                schema = pyarrow.parquet.read_schema(file)
        own = [field for field in schema if field.name not in added]
        schema = row_files.parquet_schema([*own, *(pyarrow.field(name, TYPES[name]) for name in added)])
    return Content(rows, digest.hexdigest(), schema)


def _comparable(row: dict) -> str:
    """A row as text, whatever its types; NaN equals NaN."""
    return json.dumps(row, sort_keys=True, default=repr)


def _added(row: Row, columns: Columns | None) -> list[str]:
    """Names of the fields that a row gets."""
    sides = len(row.texts)
    return [*(SCORES[:1] if sides == 1 else SCORES[1:]), *(columns.fields(sides) if columns else [])]


def score_rows(judge: Judge, columns: Columns | None, rows: Sequence[Row]) -> list[dict]:
    """The fields that rows get."""
    return [{name: values[name] for name in _added(row, columns)} for row, values in _values(judge, columns, rows)]


def _values(judge: Judge, columns: Columns | None, rows: Sequence[Row]) -> Iterator[tuple[Row, dict]]:
    """(row, its scores and all columns)."""
    texts = [(*text, row.group) for row in rows for text in row.texts]
    scores, *refs = columns.both(*zip(*texts, strict=True)) if columns else [judge.score(*zip(*texts, strict=True))]
    end = 0
    for row in rows:
        start, end = end, end + len(row.texts)
        names = SCORES[:1] if len(row.texts) == 1 else SCORES[1:]
        values = dict(zip(names, scores[start:end].tolist(), strict=True))
        yield row, values | (columns.of_row(refs[0][start:end], row.group) if columns else {})


def _finished(file, path: pathlib.Path, source: str, columns: Columns | None) -> dict:
    """{"done": rows that an output has, "samples": some of them}; refuses one of another input or other columns.

    A sample is (texts, group, what was written).
    """
    rows, done, samples, every = _rows(source, columns), 0, [], 1
    for chunk in row_files.chunks(file.read(), records.ROWS_AT_ONCE):
        inputs = list(itertools.islice(rows, len(chunk)))
        shown = file.shown([_without(SCORES, row.fields) for row in inputs])
        for i, written in enumerate(chunk):
            if i >= len(inputs) or not _is_of(inputs[i], shown[i], written, columns):
                raise InputError(f"{path}:{done + 1} {row_files.OTHER}")
            if done % every == 0:
                samples.append((inputs[i].texts, inputs[i].group, {n: written[n] for n in _added(inputs[i], columns)}))
            done += 1
        while len(samples) >= 2 * CHECKED_ROWS:
            samples, every = samples[::2], 2 * every
    return {"done": done, "samples": samples}


def _is_of(row: Row, shown: dict, written: dict, columns: Columns | None) -> bool:
    """Whether `written` is the row with what it gets, and nothing else."""
    added = _added(row, columns)
    if not all(isinstance(written.get(name), int | float) for name in added):
        return False
    ours = (*SCORES, *added)
    return _comparable(_without(ours, written)) == _comparable(_without(ours, shown))


def _without(names: Sequence[str], row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in names}


def _check_same_model(judge: Judge, columns: Columns | None, path: pathlib.Path, samples: Sequence) -> None:
    """Refuses to go on with another model's scores: the samples have to score as they did."""
    if not samples:
        return
    rows = [Row("", {}, [tuple(text) for text in texts], group) for texts, group, _ in samples]
    for (row, values), (_, group, written) in zip(_values(judge, columns, rows), samples, strict=True):
        for name in _added(row, columns):
            slack = judge.tolerance * max(1, *(abs(v) for k, v in values.items() if k in TYPES and k != "keep"))
            if name in SCORES:
                same = abs(written[name] - values[name]) <= judge.tolerance * max(1, abs(values[name]))
            else:
                same = columns.same(name, written[name], values, group, slack)
            if not same:
                raise InputError(f"{path} holds scores of another model: name another --output, or remove the file")
