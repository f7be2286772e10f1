"""Files in local folders and in buckets (`gs://`), and what epath has no way to do that serves both.

A process may be ended at any time, and another one may be reading: files are written whole or not at all.
"""

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from etils import epath

from scpo_jax.errors import InputError

Place = str | os.PathLike
BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/|$)")
CLIENTS = ("aiohttp", "gcsfs", "google", "requests")  # whose errors those of a bucket are


def is_remote(path: Place) -> bool:
    """Whether a path is one of a bucket."""
    return str(path).startswith("gs://")


def absolute(path: Place) -> epath.Path:
    """A path that does not depend on the working directory; epath would put one of a bucket below it."""
    return epath.Path(path) if is_remote(path) else epath.Path(path).resolve()


def check_bucket(path: Place, flag: str) -> None:
    """Refuses a path of a bucket that has no name, or is not Google's. Raises InputError."""
    if "://" in str(path) and not BUCKET.match(str(path)):
        raise InputError(f"{flag}={path}: it is neither local nor gs://BUCKET/PATH")


def up_to_root(folder: epath.Path) -> list[epath.Path]:
    """The folder and those that it lies in; of one in a bucket those below the bucket."""
    parents = [folder, *folder.parents]
    return [place for place in parents if str(place).count("/") > 2] if is_remote(folder) else parents


def check_local(path: Place, flag: str) -> None:
    """Refuses a path of a bucket where only a local one can be. Raises InputError."""
    if "://" in str(path):
        raise InputError(f"{flag}={path}: give a local path here, and copy it by `gcloud storage cp --recursive`")


def write(path: Place, content: str | bytes) -> None:
    """Replaces a file whole, and makes its folder. Raises InputError for a bucket that is not there."""
    path, content = epath.Path(path), content.encode() if isinstance(content, str) else content
    if is_remote(path):  # where an object is seen once all of it has arrived
        try:
            path.write_bytes(content)
        except FileNotFoundError as error:
            bucket = str(path).split("/")[2]
            raise InputError(f"{path}: there is no bucket {bucket}: make it, or name another one") from error
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{path.name}.partial"
    partial.write_bytes(content)
    partial.replace(path)


def files_under(path: epath.Path) -> list[epath.Path]:
    """The file itself, or all files in and below a folder, in order; no pipes and devices."""
    if is_remote(path):
        if not path.is_dir():
            return [path] if path.exists() else []
        return [file for entry in sorted(path.iterdir()) if entry != path for file in files_under(entry)]
    place = pathlib.Path(path)  # epath takes a pipe for a file
    found = sorted(place.rglob("*")) if place.is_dir() else [place]
    return [epath.Path(file) for file in found if file.is_file()]


@contextlib.contextmanager
def reading(folder: Place) -> Iterator[pathlib.Path]:
    """The folder itself or, of one in a bucket, a copy of its files that is gone afterwards."""
    if not is_remote(folder):
        yield pathlib.Path(folder)
        return
    with tempfile.TemporaryDirectory() as copy:
        for file in files_under(epath.Path(folder)):
            (pathlib.Path(copy) / file.name).write_bytes(file.read_bytes())
        yield pathlib.Path(copy)


@contextlib.contextmanager
def writing(folder: Place) -> Iterator[pathlib.Path]:
    """The folder itself, made, or one whose files are then written to the folder in a bucket."""
    if not is_remote(folder):
        place = pathlib.Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        yield place
        return
    with tempfile.TemporaryDirectory() as copy:
        yield pathlib.Path(copy)
        for file in pathlib.Path(copy).iterdir():
            write(epath.Path(folder) / file.name, file.read_bytes())


def is_of_bucket(error: BaseException) -> bool:
    """Whether an error is one of a bucket that does not answer, or of a right that is missing there."""
    module = type(error).__module__.partition(".")[0]
    return module in CLIENTS or (isinstance(error, ValueError) and "gs://" in str(error))  # TensorStore's
