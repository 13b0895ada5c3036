"""A snapshot over a COW device whose content a model predicts byte by byte."""

import pytest

from . import cow
from .box import assert_same, pattern

NOT_READ = "Failed to read snapshot metadata"
BLANK = bytes(1 << 20)


def dirty_image(sectors):
    """What a COW device holds before it is one: the first 4096 bytes are zeroed, as LVM2 does."""
    return bytes(4096) + pattern("soil", sectors)[4096:]


class Bench:
    """An origin, a COW device, the snapshot over both, and the model of all."""

    def __init__(
        self, box, size=8, origin=pattern("origin", 512), image=BLANK, kind="P", model=None
    ):
        """`size` is the chunk size in the table. With the model of an existing store both devices
        hold its content.
        """
        self.box, self.kind, self.table_size = box, kind, size
        if model:
            origin, image = bytes(model.origin), bytes(model.image)
        self.model = model or cow.Model(origin, image, size or 32)
        self.sectors = len(origin) // 512
        self.origin = disk(box, origin, exact=size and self.sectors % size)
        self.store = disk(box, image)
        self.snap = self.front = None

    @property
    def line(self):
        return (
            f"0 {self.sectors} snapshot {self.origin.dev} {self.store.dev} {self.kind} "
            f"{self.table_size}"
        )

    def start(self, front=False):
        self.snap = self.box.mapped(self.line)
        if front:
            self.front = self.box.mapped(f"0 {self.sectors} snapshot-origin {self.origin.dev}")
        return self

    def stop(self):
        for device in self.front, self.snap:
            if device:
                device.remove()
        self.snap = self.front = None

    def write(self, sector, data):
        self.snap.write(sector, data)
        self.model.write(sector, data)

    def write_origin(self, sector, data):
        self.front.write(sector, data)
        self.model.write_origin(sector, data)

    def take(self, chunks):
        """Makes an exception for each chunk."""
        for chunk in chunks:
            self.write(chunk * self.model.size, pattern(f"new {chunk % 32}", 1))

    def check_shown(self):
        assert_same(self.snap.content(), bytes(self.model.shown), where="snapshot")

    def check_image(self):
        """The COW device holds what it must, up to a little beyond the last chunk. The next area
        may have been zeroed ahead.
        """
        size, records = self.model.size, self.model.records
        ahead = cow.area_at(len(records) // cow.per_area(size) + 1, size) * size
        if ahead + size <= self.store.sectors and not any(self.store.read(ahead, size)):
            self.model.image[ahead * 512 : (ahead + size) * 512] = bytes(size * 512)
        sectors = min(self.store.sectors, (self.model.next + 2) * self.model.size)
        assert_same(
            self.store.read(0, sectors),
            bytes(self.model.image[: sectors * 512]),
            where="COW device",
        )


def disk(box, content, exact=True):
    """A device with this content; unless `exact`, it may be longer."""
    sectors = len(content) // 512
    mib = -(-sectors // 2048)
    ram = box.ram(mib)
    if content.count(0) < len(content):
        ram.fill(content)
    return box.mapped(f"0 {sectors} linear {ram.dev} 0") if exact and sectors < mib * 2048 else ram


def refused(bench, log):
    """(errno, what was logged) of a store that must be refused."""
    device = bench.box.mapped()
    mark = log.mark()
    with pytest.raises(OSError) as error:
        device.load(bench.line)
    lines = [
        line.replace(device.dev, "<dev>")
        for line in log.dm(mark)
        if "error adding target" not in line
    ]
    assert lines[-1].startswith(f"3 device-mapper: table: <dev>: snapshot: {NOT_READ} (-"), lines
    device.remove()
    return error.value.errno, lines
