"""Files of rows that grow chunk by chunk and, where the writing ended early, go on after the last whole one.

`read` yields the rows that are there and has to come first, to its end; then `append` adds rows and `close` ends the
file. `shown` are rows as `read` would yield them back.
"""

import itertools
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence

import pyarrow
import pyarrow.parquet

from scpo_jax.data.fields import one_line
from scpo_jax.data.records import ROWS_AT_ONCE
from scpo_jax.errors import InputError

OTHER = "is not of this input, or of other --columns: name another --output, or remove it"


def chunks(rows: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` rows, the last one perhaps shorter."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


class JsonLines:
    """A JSON object a line. A line that a crash cut off is removed at the next `append` or `close`."""

    def __init__(self, path: pathlib.Path):
        self._path, self._whole = path, 0  # bytes of whole lines

    def read(self) -> Iterator[dict]:
        """The objects of whole lines; {} for a line without one."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield _parsed(line)
                    self._whole += len(line)

    def shown(self, rows: Sequence[dict]) -> list[dict]:
        """Themselves."""
        return list(rows)

    def append(self, rows: Sequence[dict]) -> None:
        """Writes rows behind the whole lines."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = "".join(f"{json_line(row)}\n" for row in rows).encode()
        with self._path.open("ab") as file:
            file.truncate(self._whole)
            file.write(content)
        self._whole += len(content)

    def close(self) -> None:
        """Removes a line that was cut off."""
        if self._path.exists() and self._path.stat().st_size > self._whole:
            self.append([])


class ParquetParts:
    """A Parquet file; until it is closed, a folder `NAME.parts` of Parquet files, each whole and one chunk long.

    `schema` is of `parquet_schema`.
    """

    def __init__(self, path: pathlib.Path, schema: pyarrow.Schema):
        self._path, self._schema, self._rows = path, schema, 0
        self._folder = path.with_name(f"{path.name}.parts")

    def read(self) -> Iterator[dict]:
        """The rows of the closed file, or of the parts there are. Raises InputError where they are of other columns."""
        for path in [self._path] if self._path.exists() else self._parts():
            for batch in self._batches(path):
                yield from batch.to_pylist()
                self._rows += len(batch)

    def _parts(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("*.parquet"))

    def _batches(self, path: pathlib.Path) -> Iterator[pyarrow.RecordBatch]:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                if not file.schema_arrow.equals(self._schema):
                    raise InputError(f"{path} {OTHER}")
                yield from file.iter_batches(ROWS_AT_ONCE)
        except pyarrow.ArrowException as error:
            raise InputError(f"{path} {OTHER} ({one_line(error):.100})") from error

    def shown(self, rows: Sequence[dict]) -> list[dict]:
        """With every column of the schema, in its types."""
        return pyarrow.RecordBatch.from_pylist(list(rows), self._schema).to_pylist()

    def append(self, rows: Sequence[dict]) -> None:
        """Writes rows as a part, whole or not at all."""
        if self._path.exists():
            raise InputError(f"{self._path} {OTHER} (it ends after {self._rows} rows)")
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{self._rows:012}.parquet"
        partial = part.with_suffix(".partial")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), self._schema), partial)
        partial.replace(part)
        self._rows += len(rows)

    def close(self) -> None:
        """Joins the parts, one in memory at a time, and removes them."""
        if not self._path.exists():
            partial = self._path.with_name(f"{self._path.name}.partial")
            with pyarrow.parquet.ParquetWriter(partial, self._schema) as writer:
                for part in self._parts():
                    writer.write_table(pyarrow.parquet.read_table(part, schema=self._schema))
            partial.replace(self._path)
        shutil.rmtree(self._folder, ignore_errors=True)


def json_line(row: dict) -> str:
    """A row as JSON. Raises TypeError or ValueError where JSON, or UTF-8, has no form for a value."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    line.encode("utf-8")
    return line


def checked_json_line(row: dict, where: str) -> str:
    """A row as JSON. Raises InputError where JSON lines cannot hold it."""
    try:
        return json_line(row)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: JSON lines cannot hold this row ({one_line(error)}): fix it, or name an --output "
            "that ends in .parquet"
        ) from error


def _parsed(line: bytes) -> dict:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def infer_schema(known: pyarrow.Schema | None, rows: Sequence[dict]) -> pyarrow.Schema:
    """The columns of `known` and of `rows`, in the narrowest types that hold both. Raises InputError."""
    try:
        found = pyarrow.schema(list(pyarrow.array(rows).type))
        return found if known is None else pyarrow.unify_schemas([known, found], promote_options="permissive")
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise InputError(
            f"a field is not of one type in all rows, which Parquet needs ({one_line(error):.200}): name an --output "
            "that ends in .jsonl"
        ) from error


def parquet_schema(fields: Iterable[pyarrow.Field]) -> pyarrow.Schema:
    """A schema as it comes back from a Parquet file. Raises InputError where Parquet cannot hold it."""
    sink = pyarrow.BufferOutputStream()
    try:
        pyarrow.parquet.write_table(pyarrow.schema(list(fields)).empty_table(), sink)
    except pyarrow.ArrowException as error:
        raise InputError(
            f"Parquet cannot hold these fields ({one_line(error):.200}): name an --output that ends in .jsonl"
        ) from error
    return pyarrow.parquet.read_schema(pyarrow.BufferReader(sink.getvalue())).remove_metadata()
