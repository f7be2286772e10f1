"""Data sets on the Hugging Face hub, as local folders."""

from collections.abc import Sequence

import huggingface_hub
from etils import epath
from huggingface_hub.errors import HFValidationError

from scpo_jax.data.fields import one_line
from scpo_jax.errors import InputError


def fetch(path_or_id: str, revision: str, files: Sequence[str]) -> epath.Path:
    """The local path itself if it exists, else the folder of a hub data set's snapshot that holds `files`.

    Args:
        path_or_id: a local file or folder (or `gs://`), or the id of a data set, "owner/name".
        revision: branch, tag or commit of the hub data set; "" for its newest.
        files: names (or glob patterns) of the files wanted.

    Raises:
        InputError: there is neither such a path nor such a data set (or it is not in the cache while offline).
    """
    if not path_or_id:
        raise InputError("config.data.path is empty: give a local path or a hub id")
    local = epath.Path(path_or_id).expanduser()
    if local.exists():
        return local
    if path_or_id.count("/") != 1 or path_or_id.startswith(("/", ".", "~")):
        raise InputError(f"{path_or_id} does not exist: check config.data.path")
    try:
        folder = huggingface_hub.snapshot_download(
            path_or_id, repo_type="dataset", revision=revision or None, allow_patterns=list(files)
        )
    except (OSError, HFValidationError) as error:  # every error of the hub and of the network is an OSError
        raise InputError(
            f"{path_or_id} is neither a local path nor could it be fetched from the hub ({one_line(error)}); check"
            " config.data.path and the connection"
        ) from error
    return epath.Path(folder)
