"""The one exception that stands for a user's mistake, and what else of the world outside is told in one line."""

import errno
import os


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
