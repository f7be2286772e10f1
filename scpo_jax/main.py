"""The command line: which command, what it says at its end, with which exit code; the commands are in `commands`."""

import difflib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

from absl import flags

from scpo_jax import __version__, distributed, preemption, storage
from scpo_jax.commands import COMMANDS
from scpo_jax.errors import InputError, is_disk_full, line_of

USAGE = "usage: scpo COMMAND [--flag=value ...]; scpo COMMAND --help lists its flags\n" + "\n".join(
    f"  {name:10} {command.summary}" for name, command in COMMANDS.items()
)


def main(argv: Sequence[str]) -> int:
    """Runs `argv` (with the program's name first) and returns the exit code.

    0, 1 where preflight finds that something does not fit, 2 for a user's mistake, 75 for what SIGTERM interrupted.
    """
    name = argv[1] if len(argv) > 1 else ""
    if name in ("--help", "-h", "help"):
        return _show(USAGE)
    if name == "--version":
        return _show(f"scpo_jax {__version__}")
    try:
        if name not in COMMANDS:
            what = f"unknown command {name!r}" if name else "no command"
            raise InputError(f"{what}: it is one of {', '.join(COMMANDS)}")
        values = _parse(name, [argv[0], *argv[2:]])
        code = 0 if values is None else COMMANDS[name].run(values, shlex.join(["scpo", *argv[1:]])) or 0
    except (Exception, KeyboardInterrupt) as error:
        told = ending_of(error)
        if told:
            return distributed.fail(*told)
        if distributed.count() > 1:
            traceback.print_exc()
            distributed.fail(f"error: {type(error).__name__}: {error}", 1)
        raise
    distributed.finish()
    return code


def ending_of(error: BaseException) -> tuple[str, int] | None:
    """(what a command says that ends with an error, its exit code); None for a mistake of ours: its trace is shown."""
    if isinstance(error, InputError):
        return f"error: {line_of(error)}", 2
    if is_disk_full(error):
        why = f"{line_of(error):.300}"
        return f"error: the disk is full: {why}: make room, the same command goes on from here", 2
    if storage.is_of_bucket(error):
        return f"error: the bucket does not answer: {line_of(error):.500}: the same command goes on from here", 1
    if isinstance(error, distributed.PeerError):
        return f"error: {error}", 1
    if isinstance(error, preemption.Interrupted):
        return preemption.LINE.format(f": {error}"), preemption.CODE
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from here", 130
    if isinstance(error, OSError):  # a place that cannot be: no permission, a name too long
        return f"error: {line_of(error)}", 2
    return None


def _parse(name: str, argv: Sequence[str]) -> flags.FlagValues | None:
    """The flags of a command; None when its help was asked for, and printed."""
    values = _flags_of(name)
    if any(argument in ("--help", "-h", "-help") for argument in argv):
        _show(_help(name, values))
        return None
    try:
        rest = values(list(argv))
    except flags.UnrecognizedFlagError as error:
        raise InputError(_unknown_flag(name, values, error.flagname)) from error
    except (flags.Error, OSError) as error:  # OSError: of --flagfile
        raise InputError(f"{name}: {error}") from error
    if len(rest) > 1:
        raise InputError(f"{name}: {rest[1]!r} is no flag: flags are --name=value")
    return values


def _show(text: str) -> int:
    """Prints what was asked for; returns exit code 0, also where its reader has seen enough, as `head` has."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    return 0


def _help(name: str, values: flags.FlagValues) -> str:
    """A line for every flag of a command; the keys of the config are documented in `configs/base.py`."""
    own = [values[flag] for flag in values if not flag.startswith("config.")]
    lines = [
        f"  --{flag.name:11} {flag.help}" + (f" (default {_shown(flag.value)})" if flag.value else "") for flag in own
    ]
    return "\n".join([f"scpo {name}: {COMMANDS[name].summary}", *lines])


def _shown(value) -> str:
    """A flag's value as it is given on the command line."""
    return ",".join(value) if isinstance(value, list) else str(value)


def _unknown_flag(name: str, values: flags.FlagValues, flag: str) -> str:
    """What is wrong with a flag that a command does not have."""
    what = "config key" if flag.startswith("config.") else "flag"
    others = [other for other in COMMANDS if other != name and flag in _flags_of(other)]
    close = difflib.get_close_matches(flag, list(values))
    hint = f"; it is a flag of {', '.join(others)}" if others else ""
    hint = hint or (f"; did you mean {', '.join(close)}?" if close else "; scpo COMMAND --help lists flags")
    return f"{name}: unknown {what} {flag}{hint}"


def _flags_of(name: str) -> flags.FlagValues:
    values = flags.FlagValues()
    COMMANDS[name].define(values)
    return values


def console() -> None:
    """The console script `scpo`."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would advise all to install torch
    if sys.argv[1:2] != ["serve"]:  # which answers what it was asked before it ends
        preemption.listen()
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    console()
