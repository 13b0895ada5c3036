"""What the crowds of clones and of eras share: two threads use one device, a third thread tries to
load another device on its metadata.
"""

import errno

from crowd import Crowd, named
from lib import dm


class SharedMetadata(Crowd):
    """What a scenario adds to that of `Crowd`: `lines()`, the tables that the device may have, and
    `more()`, further calls on the device, each with the errors that it may report.
    """

    LEAST = {
        "first: resume": 3,
        "first: suspend": 3,
        "second: load": 3,
        "second: swap": 1,
        "other: take over, refused": 3,
        "write": 100,
        "read": 20,
        "held at between preresume and resume": 1,
    }
    HOLDS = (
        "shared metadata: entered, not yet accepted",
        "shared metadata: opened, not yet shared",
        "shared metadata: left, not yet closed",
        "between preresume and resume",
    )
    REFUSED = {errno.EINVAL, errno.ENXIO}

    def cast(self, rng, device):
        self.device = device
        device._fd()  # so that it cannot be removed
        self.other = self.box.mapped()
        return {
            "first": self.use(rng),
            "second": self.use(rng),
            "other": self.one_of(
                rng,
                6,
                (
                    named("take over", lambda: self.other.load(rng.choice(self.lines()))),
                    {errno.EBUSY},
                ),
            ),
        }

    def use(self, rng):
        device, refused = self.device, self.REFUSED
        return self.one_of(
            rng,
            rng.randrange(4, 9),
            (
                named("suspend", lambda: device.suspend(rng.random() < 0.5, rng.random() < 0.2)),
                refused,
            ),
            (named("resume", device.resume), refused),
            (named("resume", device.resume), refused),
            (named("load", lambda: device.load(rng.choice(self.lines()))), set()),
            (named("swap", lambda: device.swap(rng.choice(self.lines()))), refused),
            (named("clear", device.clear), refused),
            *self.more(rng),
            (named("remove", lambda: dm._ioctl(dm._REMOVE, device.name)), {errno.EBUSY}),
        )

    def settle(self):
        assert self.awake(self.device)
