"""The one exception that stands for a user's mistake, and what of errors is told in one line."""

import errno
import os
import sys

LONGEST = 4000  # characters of a line
SHORTEST_SECRET = 8  # characters; what is shorter hides nothing
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SCPO_SERVE_TOKEN")  # variables


class InputError(Exception):
    """Bad input or usage: what, where and what to do, in one line.

    `main` prints the message without a traceback and exits with code 2.
    """


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one behind it, says that there is no room to write; libraries say it in their own types."""
    found: BaseException | None = error
    while found is not None:
        if any(os.strerror(number) in str(found) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        found = found.__cause__ or found.__context__
    return False


def line_of(error: BaseException) -> str:
    """An error in one line for a terminal: without control characters and secrets, its middle left out if it is long.

    What is wrong with a file may quote it, and the file may be anybody's.
    """
    line = printable(" ".join(without_secrets(str(error)).split())) or type(error).__name__
    return line if len(line) <= LONGEST else f"{line[: LONGEST * 3 // 4]} ... {line[-LONGEST // 4 :]}"


def printable(text: str) -> str:
    """`text` with escapes for what would move the cursor of a terminal, or cannot be written."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def without_secrets(text: str) -> str:
    """`text` without tokens of the hub and of the service: the hub's client and HTTP libraries may quote a request."""
    hub = sys.modules.get("huggingface_hub")  # who did not import it cannot quote the token of its login
    known = [os.environ.get(name) for name in SECRETS] + [hub.get_token() if hub else None]
    for secret in (value.strip() for value in known if value):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "(token)")
    return text
