"""Waiting for conditions, with a deadline, and for I/O that runs in the background. No test sleeps
for a fixed time instead.
"""

import threading
import time

# Generous: an emulated guest on a busy machine may be a hundred times slower than hardware.
DEADLINE = 120.0


def until(condition, what, deadline=DEADLINE, interval=0.01):
    """Polls until condition() is true and returns its value; fails with `what` after the
    deadline.
    """
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(
                f"after {deadline:.0f} s still not: {what() if callable(what) else what}"
            )
        time.sleep(interval)


class Background:
    """A call in a thread of its own, for I/O that may block for a while."""

    def __init__(self, call, *args, **kwargs):
        self.value = None
        self.error = None
        self._work = lambda: call(*args, **kwargs)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self.value = self._work()
        except BaseException as error:  # result() raises it
            self.error = error

    @property
    def done(self):
        return not self._thread.is_alive()

    def join(self, deadline=DEADLINE):
        self._thread.join(deadline)
        assert self.done, f"background I/O did not finish within {deadline:.0f} s"

    def result(self, deadline=DEADLINE):
        """Waits for the call; returns its value or raises its error."""
        self.join(deadline)
        if self.error is not None:
            raise self.error
        return self.value
