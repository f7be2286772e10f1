"""A full disk is known by what any library says of it."""

import errno
import os

from scpo_jax import errors


def test_what_a_full_disk_looks_like():
    plain = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b")
    assert errors.is_disk_full(plain) and errors.is_disk_full(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    try:
        try:
            raise plain
        except OSError as error:
            raise ValueError("saving failed") from error
    except ValueError as error:
        assert errors.is_disk_full(error)
    assert errors.is_disk_full(ValueError("RESOURCE_EXHAUSTED: Error writing: [OS error 28: No space left on device]"))
    assert not errors.is_disk_full(ValueError("space")) and not errors.is_disk_full(OSError(errno.EIO, "bad"))
