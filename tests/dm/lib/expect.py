"""How calls end."""

import errno


def fails(call, *args, code=errno.EIO, **how):
    """Asserts that a call fails with this error."""
    error = errno_of(call, *args, **how)
    assert error, f"no {errno.errorcode[code]}"
    assert error == code, f"{errno.errorcode[error]}, not {errno.errorcode[code]}"


def errno_of(call, *args, **how):
    """The error that a call fails with, or 0."""
    try:
        call(*args, **how)
        return 0
    except OSError as error:
        return error.errno
