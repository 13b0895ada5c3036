"""Clones in a crowd: two threads use the device, a third thread tries to load another device on its
metadata.
"""

from crowd import Writer, named
from crowd_metadata import SharedMetadata
from lib import metadata
from lib.disk import split

REGION = 8


class Clone(SharedMetadata):
    """Nothing is lost that was acknowledged, everything else is the source's, and no I/O fails.
    Another device never gets the metadata. In the end the metadata is sound, and only regions that
    are on the destination count as hydrated.
    """

    NAME = "clone"

    def begin(self, rng):
        self.trio = self.box.trio(mib=1)
        lines = [
            f"{REGION} 1 no_hydration",
            f"{REGION} 0 4 hydration_threshold 64 hydration_batch_size 4",
            f"{REGION} 1 no_discard_passdown",
        ]
        trio = self.trio
        self.tables = [
            f"0 {trio.sectors} clone {trio.meta.dev} {trio.dest.dev} {trio.source.dev} {words}"
            for words in lines
        ]
        self.clone = self.box.clone(
            trio.meta, trio.dest, trio.source, REGION, "1 no_hydration", length=trio.sectors
        )
        self.writers = [
            Writer(self, self.clone, range(own, trio.sectors, 12), f"writer {own}")
            for own in (0, 5)
        ]
        return self.cast(rng, self.clone)

    def lines(self):
        return self.tables

    def more(self, rng):
        clone = self.clone
        yield (
            named(
                "message",
                lambda: clone.message(rng.choice(("enable_hydration", "disable_hydration"))),
            ),
            self.REFUSED,
        )
        yield named("status", lambda: clone.status(rng.random() < 0.5)), self.REFUSED

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
        self.clone.swap(self.tables[0])
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
