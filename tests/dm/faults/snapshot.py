"""The scenario of the snapshot target: an origin of 250 chunks of 2 sectors with two snapshots.

origin ─┬─ "origin": a disk
        ├─ first: 64 records an area ── "cow": a disk
        └─ second: chunks of 8 sectors ── a disk that always works
"""

import errno

from lib import cow, faults, snaps, wait
from lib.box import pattern
from lib.faults import Step

SIZE, OTHER, SECTORS = 2, 8, 500
ROOM = 1024  # sectors of the COW device
OLD = [3 * n % 240 for n in range(70)]  # chunks of the store that is opened
ACTIVE = 1 << 5


class Snapshot(faults.Scenario):
    """What must hold:

    - I/O waits for memory, so only a load or a resume reports that memory is short (`ENOMEM`), and
      succeeds the next time. No snapshot becomes invalid for lack of memory.
    - A snapshot becomes invalid if a write to its COW device failed, or a read of the origin for
      it. Then its status and its header say so; if the header cannot be written either, that is
      logged.
    - Faults of a COW device affect neither the origin nor other snapshots.
    - What was acknowledged is there, and nothing else: in memory, on disk and after the store is
      opened again.
    """

    target = "snapshot"
    PIECE = 1  # sector of a chunk that fails alone where chunks are torn
    TESTS = {
        # A reload needs pages only when a slab happens to be full.
        "tables": [
            ("create", "slab"),
            ("create", "pages"),
            ("open", "slab"),
            ("open", "pages"),
            ("reload", "slab"),
            ("adopt", "slab"),
            ("adopt", "pages"),
        ],
        "work": [
            ("start", "slab"),
            ("work", "slab"),
            ("work", "pages"),
            ("create", "cow"),
            ("open", "cow"),
            ("adopt", "cow"),
            ("reload", "cow"),
            ("life", "cow"),
            ("life", "cow-dead"),
            ("life", "cow-torn"),
        ],
    }
    EVERY = {
        ("create", "slab"): 7,
        ("open", "slab"): 17,
        ("adopt", "slab"): 7,
        ("work", "slab"): 7,
        ("adopt", "cow"): 7,
        ("life", "cow"): 3,
        ("life", "cow-dead"): 11,
        ("life", "cow-torn"): 29,
    }
    FEATURES = "1 discard_zeroes_cow"

    def __init__(self, box, module, part, kind, log):
        self.box, self.module, self.part, self.kind, self.log = box, module, part, kind, log
        self.allocations = kind in ("slab", "pages")
        self.disks = {
            role: [box.ram(1) for _ in range(2 if kind == f"{role}-torn" else 1)]
            for role in ("cow", "origin")
        }
        below = {role: self.assemble(disks) for role, disks in self.disks.items()}
        self.real, self.cow = (
            box.mapped(f"0 {length} linear {below[role].dev} 0")
            for role, length in (("origin", SECTORS), ("cow", ROOM))
        )
        self.second_disk = box.ram(1)
        for disk in (
            self.real,
            self.cow,
            self.second_disk,
        ):  # disks in memory allocate at the first write of a page
            disk.fill(bytes(disk.sectors * 512))
        self.before, self.serial = pattern("origin", SECTORS), 0
        # The spare snapshot is never removed: loading a table beside it makes the module allocate,
        # and it keeps shared state alive.
        self.spare = box.own(snaps.Snapshot(box.ram(1), box.ram(1), size=SIZE))
        self.front = self.first = self.heir = self.second = None
        self.memory = faults.bufio_memory()

    def allocate(self):
        device = self.box.mapped()
        try:
            device.load(
                f"0 {SECTORS} snapshot {self.spare.origin.dev} {self.spare.cow.dev} P {SIZE}"
            )
        finally:
            device.remove()

    def close(self):
        self.drop()
        self.spare.remove()

    # Beginnings

    def begin(self):
        self.mark, self.using, self.was_lost = self.log.mark(), None, False
        self.serial += 1
        if self.part == "reload" and self.first and self.first.status() != "Invalid":
            return
        self.drop()
        self.real.fill(self.before)
        self.cow.write(0, bytes(8 * 512))
        self.second_disk.write(0, bytes(8 * 512))
        first = bytearray(self.before)
        if self.part in ("open", "adopt"):
            records = cow.numbered(OLD, SIZE)
            cow.put(self.cow, SIZE, cow.metadata(SIZE, records))
            for old, new in records:
                data = pattern(f"chunk {old}", SIZE)
                self.cow.write(new * SIZE, data)
                first[old * SIZE * 512 : (old + 1) * SIZE * 512] = data
        self.made = {"first"} if self.part in ("open", "adopt") else set()
        contents = {"origin": self.before, "first": bytes(first), "second": self.before}
        self.models = {name: faults.Model(content) for name, content in contents.items()}
        if self.part in ("adopt", "start", "work", "reload"):
            self.create()
        if self.part in ("start", "work", "reload"):
            self.create_others()

    def line(self):
        return f"0 {SECTORS} snapshot {self.real.dev} {self.cow.dev} P {SIZE} {self.FEATURES}"

    def steps(self):
        table = (
            {errno.ENOMEM}
            if self.allocations
            else {errno.EIO} if self.kind.startswith("cow") else set()
        )
        # What uses the first snapshot, the second one, and the origin.
        first = set() if self.allocations else {errno.EIO}
        second = {errno.EIO} if self.kind.startswith("origin") else set()
        origin = second
        work = [
            Step(self.write_a_part, first),
            Step(self.write_the_origin, origin),
            Step(self.write_chunks, first),
            Step(self.read_first, first),
            Step(self.write_many_chunks, first),
            Step(self.write_much_of_the_origin, origin),
            Step(self.flush, first),
            Step(self.write_a_part_again, first),
            Step(self.write_the_second, second),
            Step(self.fua_write, first),
            Step(self.discard, first),
            Step(self.suspend),
            Step(self.zero, first),
            Step(self.write_the_origin_again, origin),
            Step(self.suspend_the_origin, origin),
            Step(self.last_chunk, origin),
            Step(self.status),
            Step(self.read_second, second),
            Step(self.read_origin, origin),
        ]
        take_over = [
            Step(self.load, table),
            Step(self.write_the_origin, origin),
            Step(self.go_live, table),
        ]
        return {
            "create": [Step(self.create, table)],
            "open": [Step(self.create, table)],
            "reload": [
                *take_over,
                Step(self.write_a_part, first),
                Step(self.load, table),
                Step(self.clear),
            ],
            "adopt": [
                Step(self.load_elsewhere, table),
                Step(self.let_go),
                Step(self.adopt, table),
                Step(self.read_first, first),
            ],
            "start": [
                Step(self.write_a_part, first),
                Step(self.write_the_origin, origin),
                Step(self.read_first, first),
            ],
            "work": work,
            "life": [
                Step(self.create, table),
                Step(self.create_others, table - {errno.EIO}),
                *work,
                *take_over,
                Step(self.read_first, first),
                Step(self.write_the_origin, origin),
                Step(self.remove),
            ],
        }[self.part]

    def excused(self, error):
        if self.using == "origin":
            return False
        wait.until(
            lambda: self.lost(self.using), f"the {self.using} is lost"
        )  # its header is written first
        return True

    # Steps

    def lost(self, name):
        device = getattr(self, name)
        return (
            device is not None
            and bool(device.info().flags & ACTIVE)
            and device.status() == "Invalid"
        )

    def create(self):
        if self.first is None:
            self.first = self.box.own(
                snaps.Snapshot(self.real, self.cow, start=False, size=SIZE, length=SECTORS)
            )
        if not self.first.info().flags & ACTIVE:
            self.first.load(self.line())
            self.first.resume()
        self.made.add("first")

    def create_others(self):
        if self.second is None:
            self.second = self.box.own(
                snaps.Snapshot(self.real, self.second_disk, start=False, size=OTHER, length=SECTORS)
            )
        if not self.second.info().flags & ACTIVE:
            self.second.load(self.second.line)
            self.second.resume()
        self.made.add("second")
        if self.front is None:
            self.front = self.box.own(snaps.Origin(self.real, start=False))
        if not self.front.info().flags & ACTIVE:
            self.front.load(self.front.line)
            self.front.resume()

    def live(self, name):
        """Whether the device works. Lasting faults leave devices that do not, and I/O to them would
        wait.
        """
        self.using = name
        device = self.front if name == "origin" else getattr(self, name)
        if device is None or device.suspended or not device.info().flags & ACTIVE:
            raise faults.Stuck
        return device

    def attempt(self, name, at, data, how):
        """Writes in any way. A snapshot that is taken later shows the data too."""
        device, models = self.live(name), [self.models[name]]
        if name == "origin":
            models += [
                self.models[later] for later in ("first", "second") if later not in self.made
            ]
        for model in models:
            model.trying(at, data)
        how(device)
        for model in models:
            model.wrote(at, data)

    def write(self, name, at, count, fua=False):
        self.serial += 1
        data = pattern(f"write {self.serial % 500}", count)
        self.attempt(name, at, data, lambda device: device.write(at, data, fua=fua))

    def write_a_part(self):
        self.write("first", 11, 2)  # of two chunks

    def write_a_part_again(self):
        self.write("first", 11, 1)

    def write_chunks(self):
        """Writes whole chunks, some of which have been copied."""
        self.write("first", 80, 40)

    def write_many_chunks(self):
        """Makes records for more than one area."""
        self.write("first", 201, 150)

    def fua_write(self):
        self.write("first", 371, 3, fua=True)

    def write_the_origin(self):
        self.write("origin", 90, 11)

    def write_much_of_the_origin(self):
        self.write("origin", 201, 200)

    def write_the_origin_again(self):
        self.write("origin", 95, 20)

    def last_chunk(self):
        self.write("origin", 495, 5)

    def write_the_second(self):
        self.write("second", 83, 9)

    def discard(self):
        """Discards chunks that were written as a whole."""
        self.attempt("first", 84, bytes(20 * 512), lambda device: device.discard(84, 20))

    def zero(self):
        self.attempt("first", 405, bytes(5 * 512), lambda device: device.zero(405, 5))

    def read(self, name):
        self.models[name].check(self.live(name).content(SECTORS), name)

    def read_first(self):
        self.read("first")

    def read_second(self):
        self.read("second")

    def read_origin(self):
        self.read("origin")

    def flush(self):
        self.live("first").flush()

    def suspend(self):
        device = self.live("first")
        device.suspend(noflush=self.serial % 2 > 0)
        device.resume()

    def suspend_the_origin(self):
        device = self.live("origin")
        device.suspend(noflush=self.serial % 2 > 0)
        device.resume()

    def status(self):
        if not self.lost("first"):
            self.live("first").look()
        if not self.lost("second"):
            self.live("second").look()

    def load(self):
        self.live("first").load(self.line())

    def clear(self):
        self.live("first").clear()

    def go_live(self):
        """Resumes the loaded table, which takes over."""
        if self.first is None:
            raise faults.Stuck
        self.first.suspend()
        self.first.resume()

    def load_elsewhere(self):
        """Loads a table of another device for the same store."""
        if self.first is None:
            raise faults.Stuck
        self.heir = (
            self.box.own(
                snaps.Snapshot(self.real, self.cow, start=False, size=SIZE, length=SECTORS)
            )
            if self.heir is None
            else self.heir
        )
        self.heir.load(self.line())

    def let_go(self):
        """Removes the source of the handover."""
        if self.first is not self.heir:
            self.first.remove()

    def adopt(self):
        """Resumes the destination, which then reads the disk."""
        self.heir.resume()
        self.first, self.heir = self.heir, None

    def remove(self):
        if self.first is None:
            raise faults.Stuck
        self.was_lost = self.lost("first")
        self.first.remove()
        self.first = None

    # What must hold afterwards

    def end(self, hit):
        if self.first and self.first.suspended:
            self.first.resume()  # a lasting fault came in between
        may_be_lost = hit and not self.allocations
        if self.front:
            self.write_the_origin()  # which waits until an invalid snapshot says so
        self.check_lost(self.was_lost or self.lost("first"), may_be_lost)
        self.create_others()
        if self.lost("second"):
            assert may_be_lost and self.kind.startswith("origin"), "lost for a fault of others"
        self.write_the_origin()
        self.read_origin()
        self.models["origin"].check(self.real.content(), "the disk of the origin")
        if not self.lost("second"):
            self.write_the_second()
            self.read_second()
        if self.part == "reload":
            return
        self.drop()
        self.gone()

    def check_lost(self, lost, may_be):
        """The first snapshot is invalid and says so, or has all its data and works."""
        magic, valid, *_ = cow.HEADER.unpack_from(self.cow.read(0, 1))
        if lost:
            assert may_be, "lost for no reason"
            said = any("write header failed" in line for line in self.log.lines(self.mark))
            assert (magic, valid) == (cow.MAGIC, 0) or said, "lost, but the header does not say so"
            return
        self.create()
        assert not self.lost("first"), "lost when it was opened again"
        self.read_first()
        self.write_a_part()
        if self.part == "reload":
            return
        self.write_many_chunks()
        status = self.first.status()
        assert status == cow.Store(self.cow).status()
        self.remove()
        self.check_image()
        self.create()
        assert self.first.status() == status
        self.read_first()

    def check_image(self):
        """Reads the disks without the module's help."""
        image, content = self.cow.content(), bytearray(self.real.content())
        store = cow.Store(image)
        assert (
            store.records == cow.numbered([old for old, _ in store.records], SIZE)
            and not store.repeated
        )
        for old, new in store.records:
            content[old * SIZE * 512 : (old + 1) * SIZE * 512] = image[
                new * SIZE * 512 : (new + 1) * SIZE * 512
            ]
        self.models["first"].check(bytes(content), "the store on disk")

    def drop(self):
        for device in self.front, self.first, self.heir, self.second:
            if device:
                device.remove()
        self.front = self.first = self.heir = self.second = None

    def gone(self):
        assert faults.bufio_memory() == self.memory, "a client of dm-bufio is left"
        for device in self.cow, self.real, self.second_disk:
            wait.until(device.is_free, f"{device.path} is free")

    def complete(self, series, said):
        """There were many chances, and steps failed where they were expected to."""
        least = {
            "slab": {
                "create": 100,
                "open": 150,
                "reload": 20,
                "adopt": 40,
                "start": 10,
                "work": 50,
            },
            # Small objects need pages only while the slab caches have no free ones.
            "pages": {"work": 0},
            "cow": {"create": 3, "open": 5, "adopt": 50, "life": 60},
            "cow-dead": {"life": 40},
            "cow-torn": {"life": 150},
        }
        assert series.last >= least.get(self.kind, {}).get(self.part, 1), f"only {series.last}"
        texts = {
            ("create", "cow"): ["zero_disk_area(0) failed", "write_header failed"],
            ("life", "cow"): ["Invalidating snapshot: Error reading/writing."],
        }
        missing = [
            text
            for text in texts.get((self.part, self.kind), ())
            if not any(text in line for line in said)
        ]
        assert not missing, f"never met: {missing}"


SCENARIO = Snapshot
