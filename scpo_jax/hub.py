"""Uploading an exported folder to the Hugging Face hub, with the login or token of its own client."""

from collections.abc import Callable

from scpo_jax import logs
from scpo_jax.data.fields import one_line
from scpo_jax.errors import InputError


def check(repository: str) -> None:
    """Refuses, before anything is computed, a name that is none, and a login that is missing or not accepted."""
    import huggingface_hub  # slow to import
    from huggingface_hub import utils

    flag = f"--push_to_hub={repository}"
    try:
        utils.validate_repo_id(repository)
    except ValueError as error:
        raise InputError(f"{flag}: {one_line(error)}") from error
    if repository.count("/") != 1:
        raise InputError(f"{flag}: it is USER/NAME or ORGANISATION/NAME")
    if huggingface_hub.get_token() is None:
        raise InputError(f"{flag} needs a login: run `hf auth login`, or put a token in the variable HF_TOKEN")
    _asked(f"{flag}: the hub does not accept the login", huggingface_hub.HfApi().whoami)


def push(folder: str, repository: str) -> None:
    """Uploads a folder, into a new private repository or one that exists, which stays as visible as it is."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    problem = f"{folder} is whole but not at {repository}; once this is solved, `hf upload {repository} {folder}`"
    _asked(problem, lambda: api.create_repo(repository, private=True, exist_ok=True))
    upload = {"repo_id": repository, "folder_path": folder, "commit_message": "Upload a reward model of scpo_jax"}
    logs.say(f"uploaded {folder}: {_asked(problem, lambda: api.upload_folder(**upload)).commit_url}")


def _asked(problem: str, call: Callable):
    """What a call of the hub's client returns. Raises InputError, in which the token does not stand."""
    import huggingface_hub

    try:
        return call()
    except Exception as error:  # the client's own errors, those of its HTTP library, OSError, ValueError
        reason, token = one_line(error), huggingface_hub.get_token()
        reason = reason.replace(token, "(token)") if token else reason
    raise InputError(f"{problem}: {reason:.300}")
