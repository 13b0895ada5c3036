"""The scenario of the era target: 13 blocks of 8 sectors, the last one short, and 17 blocks for a
while.
"""

import errno

from lib import eras, faults, wait
from lib.box import pattern
from lib.disk import split
from lib.faults import Step

SIZE, SECTORS, LONGER = 8, 100, 130
LEAKED = 10  # blocks that the space map may keep in use after a commit; see Image._space_map


def blocks(at, count):
    """The blocks that contain some sectors."""
    return range(at // SIZE, -(-(at + count) // SIZE))


class Era(faults.Scenario):
    """What must hold:

    - Live metadata operations are retried, so a single fault shows neither in writes nor in
      messages nor in the status. Only a resume reports it (`EIO`, `ENOMEM`), and succeeds the next
      time.
    - While the metadata device is dead, writes to blocks that are not marked fail, and so do
      messages and resumes. When it works again the next operation succeeds, without further
      measures.
    - The era never goes back. A write that was acknowledged is listed with the era that was the
      present one when it began, or a later one; and so is a write that failed, if the origin holds
      it. What was never written is not listed.
    - The metadata of a device that was removed without a fault is in order, with its last era
      archived.
    """

    target = "era"
    PIECE = 4  # sectors that fail together where blocks are torn
    TESTS = {
        "tables": [
            ("create", "slab"),
            ("create", "pages"),
            ("open", "slab"),
            ("open", "pages"),
            ("reload", "slab"),
            ("reload", "pages"),
        ],
        "work": [("work", "slab"), ("work", "pages")],
        "requests": [
            ("life", "metadata"),
            ("reload", "metadata"),
            ("life", "metadata-dead"),
            ("life", "origin"),
        ],
        "torn": [("life", "metadata-torn")],
    }

    # Most allocations are those of dm-bufio, which has reserves.
    EVERY = {
        ("create", "slab"): 17,
        ("create", "pages"): 3,
        ("open", "slab"): 7,
        ("open", "pages"): 3,
        ("reload", "slab"): 7,
        ("reload", "pages"): 3,
        ("work", "slab"): 37,
        ("work", "pages"): 11,
        ("life", "metadata"): 7,
        ("reload", "metadata"): 2,
        ("life", "metadata-dead"): 7,
        ("life", "metadata-torn"): 17,
    }

    # As for the clone target: the kernel dies if this fails during a format.
    EXCEPT = {"create": ["insert_shadow", "dm_tm_new_block", "dm_tm_shadow_block"]}

    def __init__(self, box, module, part, kind, log):
        self.box, self.module, self.part, self.kind, self.log = box, module, part, kind, log
        self.allocations = kind in ("slab", "pages")
        self.serial = 0
        self.disks = {
            role: [box.ram(1) for _ in range(2 if kind == f"{role}-torn" else 1)]
            for role in ("metadata", "origin")
        }
        self.metadata, self.origin = (
            self.assemble(self.disks[role]) for role in ("metadata", "origin")
        )
        for disk in (
            self.metadata,
            self.origin,
        ):  # disks in memory allocate at the first write of a page
            disk.fill(bytes(disk.sectors * 512))
        self.before = pattern("origin", LONGER)
        # The spare era is never removed: loading a table over it makes the module allocate, and it
        # keeps shared state alive.
        self.spare = box.own(eras.Era(box.ram(1), box.ram(1), SIZE, length=SECTORS))
        self.era = None
        self.memory = faults.bufio_memory()

    def line(self, length):
        return f"0 {length} era {self.metadata.dev} {self.origin.dev} {SIZE}"

    def allocate(self):
        self.spare.load(self.spare.line)
        self.spare.clear()

    def close(self):
        if self.era:
            self.era.remove()
        self.spare.remove()

    # Beginnings

    def begin(self):
        self.over = False
        if self.part == "reload" and self.era:
            return
        self.length = SECTORS
        if self.part != "open" or not self.serial:
            self.metadata.write(0, bytes(4096))
            self.last = 0
        if self.part != "open" or not self.serial:
            self.origin.fill(self.before)
            self.model = faults.Model(self.before)
            self.least = [0] * len(blocks(0, LONGER))
            self.tried = []  # writes that failed: (era, sector, data)
            self.touched = set()
        if self.part in ("work", "reload"):
            self.create()
        if self.part == "open" and not self.serial:
            self.create()
            self.remove()
        self.serial += 1

    def steps(self):
        table = {errno.ENOMEM, errno.EIO} if self.allocations else {errno.EIO}
        # Only a lasting fault of the metadata is visible while the device works.
        data = {errno.EIO} if self.kind in ("origin", "metadata-dead") else set()
        step = data  # the end of an era flushes the origin
        origin = {errno.EIO} if self.kind == "origin" else set()
        life = [
            Step(self.write_a_part, data),
            Step(self.write_it_again, data),
            Step(self.read, origin),
            Step(self.flush, origin),
            Step(self.wide_write, data),
            Step(self.fua_write, data),
            Step(self.status),
            Step(self.checkpoint, step),
            Step(self.write_it_again, data),
            Step(self.discard, data),
            Step(self.take_snapshot, step),
            Step(self.wide_write, data),
            Step(self.checkpoint, step),
            Step(self.drop_snapshot, step),
            Step(self.zero, data),
            Step(self.suspend, table),
            Step(self.write_a_part, data),
            Step(self.last_block, data),
        ]
        end = [Step(self.read, origin), Step(self.remove)]
        return {
            "create": [Step(self.create, table)],
            "open": [Step(self.create, table)],
            "reload": [Step(self.other_length, table)],
            "work": life + end,
            "life": [Step(self.create, table), *life, *end],
        }[self.part]

    def excused(self, error):
        return False

    def complete(self, series, said):
        """There were many chances, and the metadata failed where it was expected to."""
        least = {
            "slab": {"create": 200, "open": 100, "reload": 30, "work": 100},
            "pages": {"work": 30},
            "metadata": {"life": 60},
            "metadata-dead": {"life": 50},
            "metadata-torn": {"life": 60},
            "origin": {"life": 10},
        }
        assert series.last >= least.get(self.kind, {}).get(self.part, 2), f"only {series.last}"
        texts = {
            ("open", "slab"): ["Error reading metadata", "preresume failed"],
            ("life", "metadata"): ["commit failed", "preresume failed"],
            ("life", "metadata-dead"): [
                "pre commit failed",
                "the metadata failed",
                "couldn't archive current era",
            ],
        }
        missing = [
            text
            for text in texts.get((self.part, self.kind), ())
            if not any(text in line for line in said)
        ]
        assert not missing, f"never met: {missing}"

    # Steps

    def number(self):
        """The present era, or the last one that was seen if the status does not say."""
        text = self.era.status()
        if text == "Error":
            assert (
                not self.over and self.fault.lasting and self.fault.count()
            ), "Error without a reason"
            return self.last
        now = eras.Status(text).era
        assert now >= self.last, f"the era went back from {self.last} to {now}"
        self.last = now
        return now

    def began(self, before):
        """Records that a new era has begun. A lasting fault may have followed."""
        assert (
            self.number() > before or self.fault.lasting and self.era.status() == "Error"
        ), "no new era"

    def create(self):
        if self.era is None:
            self.era = self.box.own(
                eras.Era(self.metadata, self.origin, SIZE, start=False, length=SECTORS)
            )
        self.length = SECTORS
        self.go_live()

    def go_live(self):
        """Resumes a table of the present length over the live one."""
        before = self.last
        for block in range(len(blocks(0, self.length)), len(self.least)):
            self.least[block] = 0
        self.era.load(self.line(self.length))
        self.era.resume()
        self.began(before)

    def live(self):
        """Whether the era works. Lasting faults leave devices that do not, and I/O to them would
        wait.
        """
        if self.era is None or self.era.suspended or not self.era.info().flags >> 5 & 1:
            raise faults.Stuck

    def attempt(self, at, data, call):
        """Writes, in the era that is the present one before the write."""
        self.live()
        now = self.number()
        self.model.trying(at, data)
        where = blocks(at, len(data) // 512)
        self.touched.update(where)
        try:
            call()
        except OSError:
            self.tried.append((now, at, data))
            raise
        self.model.wrote(at, data)
        for block in where:
            self.least[block] = max(self.least[block], now)

    def write(self, at, count, fua=False):
        self.serial += 1
        data = pattern(f"write {self.serial % 500}", count)
        self.attempt(at, data, lambda: self.era.write(at, data, fua=fua))

    def write_a_part(self):
        self.write(3, 2)

    def write_it_again(self):
        """Writes to a block that is marked, unless an era has begun since."""
        self.write(0, 8)

    def wide_write(self):
        """Writes two whole blocks and a part of the next one."""
        self.write(16, 20)

    def fua_write(self):
        self.write(41, 3, fua=True)

    def write_behind(self):
        """Writes to blocks that only the longer table has."""
        if self.length == LONGER:
            self.write(102, 20)

    def last_block(self):
        self.write(96, 4)

    def discard(self):
        self.attempt(52, bytes(20 * 512), lambda: self.era.discard(52, 20))

    def zero(self):
        self.attempt(76, bytes(5 * 512), lambda: self.era.zero(76, 5))

    def read(self):
        self.live()
        behind = b"".join(next(iter(held)) for held in self.model.now[self.length :])
        self.model.check(self.era.content(self.length) + behind, "read")

    def flush(self):
        self.live()
        self.era.flush()

    def status(self):
        self.live()
        self.number()

    def checkpoint(self):
        self.live()
        before = self.number()
        self.era.message("checkpoint")
        self.began(before)

    def take_snapshot(self):
        self.live()
        before = self.number()
        self.era.take()
        self.began(before)

    def drop_snapshot(self):
        """Drops the metadata snapshot, if there is one: `take` may report an error after it was
        made.
        """
        self.live()
        if self.era.status() != "Error" and not self.era.look().snapshot:
            return
        self.era.drop()

    def suspend(self):
        self.live_or_suspended()
        before = self.last
        self.era.suspend(noflush=self.serial % 2 > 0)
        self.era.resume()
        self.began(before)

    def live_or_suspended(self):
        """What a suspended device that a fault left behind may be asked."""
        if self.era is None or self.fault.lasting and self.era.suspended:
            raise faults.Stuck

    def other_length(self):
        """Loads a table over the live one, longer and shorter alternately; the same table again if
        that failed.
        """
        self.live_or_suspended()
        self.era.suspend()
        self.length = SECTORS if self.serial % 2 else LONGER
        self.go_live()

    def remove(self):
        if self.era is None:
            raise faults.Stuck
        self.era.remove()
        self.era = None

    # What must hold afterwards

    def end(self, hit):
        self.over = True
        if self.era is None:
            self.create()
        if self.era.suspended or not self.era.info().flags >> 5 & 1:
            self.go_live()  # a lasting fault did not let it start
        self.read()
        if self.part in ("create", "open"):
            self.write_a_part()
        else:
            self.works_again()
            self.write_behind()
            self.listed()
        if self.part == "reload":
            self.serial += 1
            return
        self.write_it_again()
        last = self.number()
        self.remove()
        self.gone()
        self.check_image(last)

    def works_again(self):
        """Writes to blocks that are not marked succeed at once, and nothing is left of the
        fault.
        """
        self.write_a_part()
        self.last_block()
        self.checkpoint()
        assert self.era.status() != "Error"

    def listed(self):
        """What user space is told: the last era of each block."""
        snapshot = self.era.look().snapshot
        if snapshot:  # a fault left it
            eras.Metadata(self.metadata.content(), snapshot)
            self.era.drop()
        before = list(self.least)
        self.era.take()
        self.compare(
            eras.Metadata(self.metadata.content(), self.era.look().snapshot).eras(), before
        )
        self.era.drop()

    def gone(self):
        assert faults.bufio_memory() == self.memory, "a client of dm-bufio is left"
        for disks in self.disks.values():
            if len(disks) == 1:
                wait.until(lambda: disks[0].is_free(), f"{disks[0].path} is free")

    def compare(self, found, least):
        found = found + [0] * (len(least) - len(found))
        missing = {n: (era, least[n]) for n, era in enumerate(found) if era < least[n]}
        assert not missing, f"listed with an older era than that of the write: {missing}"
        extra = [n for n, era in enumerate(found) if era and n not in self.touched]
        assert not extra, f"listed, but never written: {extra}"

    def check_image(self, last):
        content = self.origin.read(0, LONGER)
        self.model.check(content, "the origin")
        now = split(content)
        for era, at, data in self.tried:
            for n, sector in enumerate(split(data), at):
                if now[n] == sector and now[n] != split(self.before)[n]:
                    self.least[n // SIZE] = (
                        max(self.least[n // SIZE], era) if n < self.length else 0
                    )
        image = eras.read(self.metadata)
        assert (image.era, image.bitset_root, image.snapshot) == (
            last,
            0,
            0,
        ), "not what it was when it was removed"
        assert image.blocks == len(blocks(0, self.length))
        self.compare(image.eras(), self.least)
        assert len(image.leaked) < LEAKED, f"in use without a reference: {image.leaked}"


SCENARIO = Era
