"""Reading files of records strictly: JSON lines, CSV and Parquet, each record with the place it comes from.

A record that cannot be read is handed on as the error itself, not raised: adapters look through all records for the
groups that exist, so that an unknown group is reported before anything else, and raise the first error afterwards.
"""

import csv
import json
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet
from etils import epath

from scpo_jax import storage, untrusted
from scpo_jax.data.fields import check_depth, kind, one_line, unique, valid_text
from scpo_jax.errors import InputError

ROWS_AT_ONCE = 128  # of a Parquet file in memory
BOM = b"\xef\xbb\xbf"

Row = tuple[str, dict | InputError]  # file:line, and the record or what is wrong with it


def read_rows(path) -> list[Row]:
    """All records of a file; see `stream_rows`."""
    return list(stream_rows(path))


def stream_rows(path) -> Iterator[Row]:
    """The records of a file, a few in memory at a time.

    `.csv` and `.parquet` are known by their extension, whatever else it is called is JSON lines.

    Raises:
        InputError: the file is missing, a folder, empty or as a whole unreadable.
    """
    if not str(path):
        raise InputError("no file is named: give its path (config.data.path)")
    storage.check_bucket(path, "the file")
    path = epath.Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the file")
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path")
    untrusted.check_regular(path)
    readers = {".csv": csv_rows, ".parquet": parquet_rows}
    empty = True
    try:
        for row in readers.get(path.suffix.lower(), json_rows)(path):
            empty = False
            yield row
    except OSError as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}): check its permissions") from error
    if empty:
        raise InputError(f"{path} is empty: it needs at least one row")


def json_rows(path) -> Iterator[Row]:
    """One JSON object a line. Lines end at line feeds only (a text may hold U+2028); blank lines are skipped."""
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, _json_object(line, where)
            except InputError as error:
                yield where, error


def csv_rows(path) -> Iterator[Row]:
    """Rows of a CSV file with a header, by the number of the line on which they start."""
    # Undecodable bytes become surrogates, so that one bad row doesn't end the file for the reader.
    reader = csv.reader((line.decode("utf-8", "surrogateescape") for _, line in _lines(path)), strict=True)
    header, start = None, 1
    while True:
        where = f"{path}:{start}"
        try:
            row = next(reader)
            if row and header is None:
                header = _check_names(row, where)
            elif row:
                yield where, _csv_record(header, row, where)
        except StopIteration:
            return
        except csv.Error as error:
            yield where, InputError(f"{where}: not CSV ({one_line(error)}); fix this row")
            return
        except InputError as error:
            yield where, error
            if header is None:
                return
        start = reader.line_num + 1


def parquet_rows(path) -> Iterator[Row]:
    """Rows of a Parquet file, numbered from 1."""
    number = 0
    try:
        with epath.Path(path).open("rb") as file:
            table = pyarrow.parquet.ParquetFile(file)
            _check_names(table.schema_arrow.names, str(path))
            for batch in table.iter_batches(ROWS_AT_ONCE):
                for record in batch.to_pylist():
                    number += 1
                    check_depth(record, f"{path}: row {number}")
                    yield f"{path}: row {number}", record
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # no UTF-8, dates that Python does not have
        raise InputError(f"{path}: not a readable Parquet file ({one_line(error)}); write it again") from error


def _lines(path) -> Iterator[tuple[int, bytes]]:
    with epath.Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(BOM) if number == 1 else line


def _json_object(line: bytes, where: str) -> dict:
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte {error.start + 1} of the line); convert the file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({one_line(error)}); every line has to be one JSON object") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: this line is {kind(record)}; every line has to be one JSON object")
    check_depth(record, where)
    return record


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no JSON number")


def _check_names(names: list[str], where: str) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{where}: the header names {repeated} more than once; rename all but one")
    return names


def _csv_record(header: list[str], row: list[str], where: str) -> dict:
    if len(row) != len(header):
        raise InputError(f"{where}: {len(row)} cells, but the header has {len(header)}; check quotes and commas")
    return {name: valid_text(value, name, where) for name, value in zip(header, row, strict=True)}
