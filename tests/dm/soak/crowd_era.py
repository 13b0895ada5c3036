"""Eras in a crowd: two threads use the device, a third thread tries to load another device on its
metadata.
"""

from crowd import Writer, named
from crowd_metadata import SharedMetadata
from lib import eras
from lib.box import pattern
from lib.disk import split

SIZE = 8


class Era(SharedMetadata):
    """Nothing is lost, no I/O fails, and each block that was written is in the list, with an era
    not earlier than the write.
    """

    NAME = "era"
    LEAST = SharedMetadata.LEAST | {"first: checkpoint": 3}

    def begin(self, rng):
        self.pair = eras.Pair(self.box, mib=1)
        self.data = pattern("origin", 2048)
        self.pair.origin.fill(self.data)
        self.era = self.pair.era(SIZE)
        self.number, self.least = self.era.era, {}
        self.writers = [
            Writer(self, self.era, range(own, 2048, 12), f"writer {own}") for own in (0, 5)
        ]
        for writer in self.writers:
            writer.before = self.before
        return self.cast(rng, self.era)

    def lines(self):
        return [self.era.line]

    def before(self, sector):
        self.least[sector // SIZE] = self.number

    def look(self):
        era = self.era.era
        with self.lock:
            self.number = max(self.number, era)

    def checkpoint(self):
        self.era.message("checkpoint")
        self.look()

    def more(self, rng):
        for name, call in (
            ("checkpoint", self.checkpoint),
            ("take", self.era.take),
            ("drop", self.era.drop),
            ("status", self.look),
        ):
            yield named(name, call), self.REFUSED

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
