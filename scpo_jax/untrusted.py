"""Files that anybody may have made: read without waiting for ever, without recursion, and without leaving their folder.

Every function raises InputError, one line that names the file.
"""

import json
import os
import pathlib
import stat
from collections.abc import Iterable

from scpo_jax import storage
from scpo_jax.errors import InputError


def check_regular(path) -> None:
    """Refuses what exists and is neither file nor folder: reading a pipe or a device may never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # not here, or of gs://
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is a pipe or a device: give a file")


def json_object(path) -> dict:
    """The object in a JSON file. What a bucket has to say that does not answer stays what it is."""
    check_regular(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if storage.is_of_bucket(error):
            raise
        raise InputError(f"{path}: not readable as JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type when it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_links(folder, paths: Iterable[pathlib.Path]) -> None:
    """Refuses paths of a folder that are links, or lie behind links, to places outside of it.

    What a model holds is copied into checkpoints, exports and uploads: a folder from elsewhere must not bring other
    files of this machine into them. In the cache of the hub files are links into the same repository's `blobs`.
    """
    home = pathlib.Path(folder).resolve()
    places = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    for path in paths:
        try:
            target = path.resolve()
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise InputError(f"{path}: {first_line(error)}") from error
        if not any(target.is_relative_to(place) for place in places):
            raise InputError(f"{path} is a link to a place outside of its folder: put a copy there")
