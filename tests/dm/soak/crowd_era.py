"""Eras in a crowd: two threads use the device, a third wants its metadata for another one."""

import errno

from crowd import Crowd, Writer, named
from lib import dm, eras
from lib.box import pattern
from lib.disk import split

SIZE = 8


class Era(Crowd):
    """Nothing is lost, no I/O fails, and each block that was written to is in the list, with an era
    not before that write.
    """

    NAME = "era"
    LEAST = {
        "first: resume": 3,
        "first: suspend": 3,
        "second: load": 3,
        "second: swap": 1,
        "first: checkpoint": 3,
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

    def begin(self, rng):
        self.pair = eras.Pair(self.box, mib=1)
        self.data = pattern("origin", 2048)
        self.pair.origin.fill(self.data)
        self.era = self.pair.era(SIZE)
        self.other = self.box.mapped()
        self.era._fd()  # so that it cannot be removed
        self.number, self.least = self.era.era, {}
        self.writers = [
            Writer(self, self.era, range(own, 2048, 12), f"writer {own}") for own in (0, 5)
        ]
        for writer in self.writers:
            writer.before = self.before
        return {
            "first": self.use(rng),
            "second": self.use(rng),
            "other": self.one_of(
                rng, 6, (named("take over", lambda: self.other.load(self.era.line)), {errno.EBUSY})
            ),
        }

    def before(self, sector):
        self.least[sector // SIZE] = self.number

    def look(self):
        era = self.era.era
        with self.lock:
            self.number = max(self.number, era)

    def checkpoint(self):
        self.era.message("checkpoint")
        self.look()

    def use(self, rng):
        device = self.era
        refused = {errno.EINVAL, errno.ENXIO}
        return self.one_of(
            rng,
            rng.randrange(4, 9),
            (
                named("suspend", lambda: device.suspend(rng.random() < 0.5, rng.random() < 0.2)),
                refused,
            ),
            (named("resume", device.resume), refused),
            (named("resume", device.resume), refused),
            (named("load", lambda: device.load(device.line)), set()),
            (named("swap", lambda: device.swap(device.line)), refused),
            (named("clear", device.clear), refused),
            (named("checkpoint", self.checkpoint), refused),
            (named("take", device.take), refused),
            (named("drop", device.drop), refused),
            (named("status", self.look), refused),
            (named("remove", lambda: dm._ioctl(dm._REMOVE, device.name)), {errno.EBUSY}),
        )

    def settle(self):
        assert self.awake(self.era)

    def check(self):
        content = split(self.data)
        for writer in self.writers:
            for sector, may in writer.may.items():
                (content[sector],) = may
        assert self.content(self.era, 2048) == content, "content"
        if self.era.look().snapshot:
            self.era.drop()
        self.era.remove()
        assert self.content(self.pair.origin, 2048) == content, "content of the origin"
        self.pair.meta.close()
        found = eras.read(self.pair.meta).eras()
        late = {
            block: (found[block], era) for block, era in self.least.items() if found[block] < era
        }
        assert not late, f"blocks of an era before they were written: {late}"

    def close(self):
        pass
