"""Clones in a crowd: two threads use the device, a third wants its metadata for another one."""

import errno

from crowd import Crowd, Writer, named
from lib import dm, metadata
from lib.disk import split

REGION = 8


class Clone(Crowd):
    """Nothing that was acknowledged is lost, the rest is the source's; no I/O fails; another device
    never gets the metadata; in the end the metadata is sound, and says no more than is on the
    destination.
    """

    NAME = "clone"
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

    def begin(self, rng):
        self.trio = self.box.trio(mib=1)
        lines = [
            f"{REGION} 1 no_hydration",
            f"{REGION} 0 4 hydration_threshold 64 hydration_batch_size 4",
            f"{REGION} 1 no_discard_passdown",
        ]
        trio = self.trio
        self.lines = [
            f"0 {trio.sectors} clone {trio.meta.dev} {trio.dest.dev} {trio.source.dev} {words}"
            for words in lines
        ]
        self.clone = self.device = self.box.clone(
            trio.meta, trio.dest, trio.source, REGION, "1 no_hydration", length=trio.sectors
        )
        self.other = self.box.mapped()
        self.clone._fd()  # so that it cannot be removed
        self.writers = [
            Writer(self, self.clone, range(own, trio.sectors, 12), f"writer {own}")
            for own in (0, 5)
        ]
        return {
            "first": self.use(rng),
            "second": self.use(rng),
            "other": self.one_of(
                rng, 6, (named("take over", lambda: self.take_over(rng)), {errno.EBUSY})
            ),
        }

    def use(self, rng):
        device = self.clone
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
            (named("load", lambda: device.load(rng.choice(self.lines))), set()),
            (named("swap", lambda: device.swap(rng.choice(self.lines))), refused),
            (named("clear", device.clear), refused),
            (
                named(
                    "message",
                    lambda: device.message(rng.choice(("enable_hydration", "disable_hydration"))),
                ),
                refused,
            ),
            (named("status", lambda: device.status(rng.random() < 0.5)), refused),
            (named("remove", lambda: dm._ioctl(dm._REMOVE, device.name)), {errno.EBUSY}),
        )

    def take_over(self, rng):
        self.other.load(rng.choice(self.lines))

    def settle(self):
        assert self.awake(self.clone)

    def expected(self):
        content = split(bytes(self.trio.expected))
        for writer in self.writers:
            for sector, may in writer.may.items():
                (data,) = may
                content[sector] = data
        return content

    def check(self):
        assert self.clone.look().mode == "rw"
        content = self.expected()
        assert self.content(self.clone, self.trio.sectors) == content, "content"
        self.clone.swap(self.lines[0])
        assert self.content(self.clone, self.trio.sectors) == content, "content under a new table"
        self.clone.remove()
        self.trio.meta.close()
        hydrated = metadata.Metadata(self.trio.meta.content()).hydrated()
        dest = split(self.trio.dest.content(self.trio.sectors))
        for region in hydrated:
            at = slice(region * REGION, (region + 1) * REGION)
            assert dest[at] == content[at], f"region {region} is called hydrated, and is not"
        written = {sector // REGION for writer in self.writers for sector in writer.may}
        assert written <= set(hydrated), "what was written is not called hydrated"

    def close(self):
        self.trio.check_source()
