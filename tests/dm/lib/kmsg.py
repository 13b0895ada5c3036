"""The kernel log, read from /dev/kmsg from a chosen moment on."""

import os
import re

# What no test may leave in the log, on any implementation.
BAD = re.compile(
    r"\bBUG\b|WARNING: |Oops|general protection fault|kernel panic|Call Trace:|UBSAN"
    r"|KASAN|KCSAN|lockdep"
    r"|blocked for more than|rcu: INFO|refcount_t:|[Uu]nable to handle (kernel|page)"
    r"|scheduling while atomic|sleeping function"
    r"|bad page state|list_(add|del) corruption|possible circular locking"
    r"|inconsistent lock state|panicked at"
)


class Log:
    """What the kernel logs after the creation of this object."""

    def __init__(self):
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._fd, 0, os.SEEK_END)
        self._lines = []

    def close(self):
        os.close(self._fd)

    def _pull(self):
        while True:
            try:
                record = os.read(self._fd, 16384)
            except BlockingIOError:
                return
            except BrokenPipeError:  # records were overwritten: report that
                self._lines.append((3, "(kernel log overrun)"))
                continue
            head, _, rest = record.decode("utf-8", "replace").partition(";")
            level = int(head.split(",")[0]) & 7
            self._lines.append((level, rest.split("\n")[0]))

    def mark(self):
        """A position; lines(mark) returns what was logged after it."""
        self._pull()
        return len(self._lines)

    def lines(self, since=0, only=None):
        """Lines as 'LEVEL text', the level being the kernel's number (3 error, 4 warning, 6
        information).
        """
        self._pull()
        return [
            f"{level} {text}" for level, text in self._lines[since:] if only is None or only in text
        ]

    def dm(self, since=0):
        """The lines of device-mapper only."""
        return self.lines(since, "device-mapper: ")

    def said(self, text, since=0):
        """The number of lines of device-mapper that end with a text."""
        return sum(line.endswith(text) for line in self.dm(since))

    def bad(self, since=0):
        return [line for line in self.lines(since) if BAD.search(line)]


class Said:
    """What device-mapper says from here on."""

    def __init__(self, log):
        self._log, self._mark = log, log.mark()

    def count(self, text):
        return self._log.said(text, self._mark)
