"""The one exception that stands for a user's mistake."""


class InputError(Exception):
    """Bad input or usage: what, where and what to do, in one line.

    `main` prints the message without a traceback and exits with code 2.
    """
