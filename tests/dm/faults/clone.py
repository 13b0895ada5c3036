"""The scenario of the clone target: 13 regions of 8 sectors, the last one short."""

import errno

from lib import dm, faults, metadata, wait
from lib.box import pattern
from lib.faults import Step

REGION, SECTORS = 8, 100
REGIONS = -(-SECTORS // REGION)


class Clone(faults.Scenario):
    target = "clone"
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
            ("life", "metadata-dead"),
            ("life", "source"),
            ("life", "destination"),
            ("life", "destination-dead"),
        ],
        "torn": [("writes", "metadata-torn"), ("writes", "destination-torn")],
    }

    # dm-persistent-data ignores that it has no memory to record a new block. While it formats, it
    # then divides by an uninitialised field (old_ll.entries_per_block), and the kernel dies.
    EXCEPT = {"create": ["insert_shadow", "dm_tm_new_block", "dm_tm_shadow_block"]}

    def __init__(self, box, module, part, kind, log):
        self.box, self.module, self.part, self.kind, self.log = box, module, part, kind, log
        self.allocations = kind in ("slab", "pages")
        self.serial = 0
        self.opening = False
        self.disks = {"source": [box.ram(1)]}
        for role in "metadata", "destination":
            self.disks[role] = [
                box.ram(1, cache=role == "destination")
                for _ in range(2 if kind == f"{role}-torn" else 1)
            ]
        self.parts = {role: self.assemble(disks) for role, disks in self.disks.items()}
        self.source = pattern("source", SECTORS)
        self.stale = pattern("destination", SECTORS)
        self.parts["source"].fill(self.source)
        # The spare clone is never removed: loading a table over it makes the module allocate, and
        # it keeps shared state alive.
        self.spare = self.device([box.ram(1) for _ in range(3)])
        self.clone = None
        self.memory = faults.bufio_memory()

    def device(self, parts=None, start=True):
        meta, dest, source = parts or (
            self.parts[role] for role in ("metadata", "destination", "source")
        )
        return self.box.clone(
            meta, dest, source, REGION, "1 no_hydration", length=SECTORS, start=start
        )

    def allocate(self):
        self.spare.load(self.spare.line)
        self.spare.clear()

    def close(self):
        if self.clone:
            self.clone.remove()
        self.spare.remove()

    # Beginnings

    def begin(self):
        self.start = self.log.mark()
        if self.part == "reload" and self.clone:
            return
        if self.part != "open" or not self.serial:
            self.parts["metadata"].write(0, bytes(metadata.BLOCK))
        self.parts["destination"].fill(self.stale)
        self.model = faults.Model(self.source, self.stale)
        self.lossy = False
        if self.part in ("work", "reload"):
            self.create()
        if self.part in ("create", "open") and not self.clone:
            self.clone = self.device(start=False)
        self.serial += 1

    def steps(self):
        table = {errno.ENOMEM if self.allocations else errno.EIO}
        data = {errno.EIO}
        life = [
            Step(self.partial_write, data),
            Step(self.whole_write, data),
            Step(self.read, data),
            Step(self.flush, data),
            Step(self.wide_write, data),
            Step(self.fua_write, data),
            Step(self.status),
            Step(self.suspend),
            Step(self.fua_whole_write, data),
            Step(self.rewrite, data),
            Step(self.discard, data),
            Step(self.messages),
            Step(self.flush, data),
            Step(self.suspend_noflush),
            Step(self.last_region, data),
        ]
        end = [Step(self.hydrate), Step(self.read, data), Step(self.remove)]
        return {
            "create": [Step(self.load, table, again=False)],
            "open": [Step(self.load, table, again=False)],
            "reload": [Step(self.reload, table)],
            "work": life + end,
            # Reads are not torn, and are split into many pieces.
            "writes": [
                step for step in [Step(self.create, table), *life, *end] if step.call != self.read
            ],
            "life": [
                Step(self.create, table),
                *life,
                Step(self.reload, table),
                Step(self.flush, data),
                *end,
                Step(self.create, table),
                Step(self.read, data),
                Step(self.remove),
            ],
        }[self.part]

    def excused(self, error):
        """Read-only mode excuses writes to regions that are not hydrated, and flushes; fail mode
        excuses all I/O. The source never causes a mode change.
        """
        return self.mode() != "rw" and self.kind != "source"

    def mode(self):
        text = self.clone.status()
        return text if text == "Fail" else dm.Status(text).mode

    def enough(self):
        """Opening and formatting the metadata lead to the same further steps."""
        if self.part != "create" or not self.allocations:
            return False
        said = [
            line for line in self.log.lines(self.start) if ": clone: " in line and "table" in line
        ]
        opening = any("Failed to load metadata" in line for line in said)
        self.opening |= opening
        return self.opening and said and not opening

    def complete(self, series, said):
        """Each series had faults, the constructor failed in each of its ways, and so did each
        commit.
        """
        least = {
            "slab": {"create": 50, "open": 100, "reload": 60, "work": 50},
            "pages": {"create": 5, "reload": 2},
            "metadata": {"life": 40},
            "metadata-torn": {"writes": 50},
            "destination": {"life": 15},
        }
        assert series.last >= least.get(self.kind, {}).get(self.part, 5), f"only {series.last}"
        texts = {
            ("open", "slab"): [
                "Error opening metadata device",
                "Error opening destination device",
                "Error opening source device",
                "Failed to load metadata",
                "Failed to allocate workqueue",
                "Failed to create dm_clone_region_hydration memory pool",
                "Failed to allocate memory for table line",
                "Failed to allocate clone structure",
            ],
            ("life", "metadata"): [
                "dm_clone_metadata_commit' failed",
                "dm_tm_pre_commit failed",
                "Failed to commit superblock",
                "Failed to load metadata",
            ],
            ("life", "destination"): ["flush destination device' failed", "hydration failed"],
            ("life", "source"): ["hydration failed"],
        }
        missing = [
            text
            for text in texts.get((self.part, self.kind), ())
            if not any(text in line for line in said)
        ]
        assert not missing, f"never met: {missing}"

    # Steps

    def load(self):
        self.clone.load(self.clone.line)
        self.clone.clear()

    def create(self):
        if self.clone is None:
            self.clone = self.device(start=False)
        self.start = self.mark = self.log.mark()
        try:
            self.clone.load(self.clone.line)
            self.clone.resume()
        except OSError:
            if self.fault.lasting:
                self.clone.remove()
                self.clone = None
            raise

    def live(self):
        """Whether the clone works. Lasting faults leave devices that do not, and I/O to them would
        wait.
        """
        if self.clone is None or self.clone.suspended:
            raise faults.Stuck

    def write(self, at, count, fua=False):
        self.live()
        self.serial += 1
        data = pattern(f"write {self.serial % 500}", count)
        self.model.trying(at, data)
        self.clone.write(at, data, fua=fua)
        self.model.wrote(at, data, fua)

    def partial_write(self):
        self.write(3, 2)

    def whole_write(self):
        self.write(8, 8)

    def wide_write(self):
        """Writes two whole regions and a part of the next one."""
        self.write(16, 20)

    def fua_write(self):
        self.write(41, 3, fua=True)

    def fua_whole_write(self):
        self.write(48, 8, fua=True)

    def rewrite(self):
        """Writes to a region that is hydrated, unless an earlier step failed."""
        self.write(2, 2)

    def last_region(self):
        self.write(96, 4)

    def read(self):
        self.live()
        self.model.check(self.clone.content(SECTORS), "read")

    def flush(self):
        self.live()
        self.clone.flush()
        self.model.flushed()

    def discard(self):
        """Discards two regions. If that fails they may count as hydrated, and hold what the
        destination held before.
        """
        self.live()
        self.model.trying(56, bytes(16 * 512))
        whole = not self.fault.count()
        if not whole:
            self.model.may_hold_anything(56, 16)
        try:
            self.clone.discard(56, 16)
        except OSError:
            self.model.may_hold_anything(56, 16)
            raise
        if whole and not self.fault.count():
            self.model.wrote(56, bytes(16 * 512))
        else:
            self.model.may_hold_anything(56, 16)

    def status(self):
        self.live()
        text = self.clone.status(noflush=False)
        assert text == "Fail" or dm.Status(text)

    def suspend(self):
        self.live()
        self.clone.suspend()
        self.clone.resume()

    def suspend_noflush(self):
        self.live()
        self.clone.suspend(noflush=True)
        self.clone.resume()

    def messages(self):
        self.live()
        self.clone.message("hydration_threshold", "6")
        self.clone.message("hydration_batch_size", "3")

    def reload(self):
        """Loads a table over the live one. Afterwards the mode is rw again, unless a flush of the
        destination failed.
        """
        if self.clone is None:
            raise faults.Stuck
        self.clone.suspend()
        try:
            self.clone.load(self.clone.line)
        finally:
            self.clone.resume()
        if not self.flush_failed():
            assert self.mode() == "rw"
            self.mark = self.log.mark()

    def flush_failed(self):
        return any(
            "flush destination device' failed" in line for line in self.log.lines(self.start)
        )

    def hydrate(self):
        """Hydrates all regions. Each `enable_hydration` retries what failed."""
        self.live()

        def done():
            mode = self.mode()
            if mode != "rw" or self.fault.lasting and self.fault.count():
                return True
            status = self.clone.look()
            if status.full and not status.hydrating:
                return True
            self.clone.message("enable_hydration")
            return False

        wait.until(done, lambda: f"hydrated ({self.clone.status()})", interval=0.001)
        self.clone.message("disable_hydration")

    def remove(self):
        if self.clone is None:
            raise faults.Stuck
        mode = self.mode()
        self.clone.remove()
        self.clone = None
        # A commit may fail just when the mode is read, or during the removal.
        if mode != "rw" or faults.switched(self.log.lines(self.mark)):
            self.model.lost()
            self.lossy = True

    # What must hold afterwards

    def end(self, hit):
        if self.part in ("create", "open"):
            assert self.clone.info().flags >> 6 & 1 == 0, "a table is left"
            assert faults.bufio_memory() == self.memory
            assert all(disk.is_free() for disks in self.disks.values() for disk in disks)
            return
        if self.part == "reload":
            self.check_live(hit)
            return
        if self.clone is None and not any(self.parts["metadata"].read(0, 8)):
            self.create()
        if self.clone is not None:
            if self.clone.suspended or not self.clone.info().flags >> 5 & 1:
                self.create()  # a lasting fault did not let it start
            self.check_live(hit)
            self.settle(hit)
        self.gone()
        self.check_image()
        if self.lossy:
            self.check_again()
            self.gone()

    def check_live(self, hit):
        """The mode agrees with the log and the fault; reads return what was acknowledged."""
        self.suspend()  # and waits for a commit that runs
        mode = self.mode()
        said = faults.switched(self.log.lines(self.mark))
        assert said == (mode != "rw"), f"mode {mode}, but the log says otherwise"
        if mode != "rw":
            assert hit and self.kind != "source", f"mode {mode} without a reason"
            assert (
                mode == "ro" or self.fault.lasting
            ), "one fault, and the metadata could not be opened again"
            assert not self.kind.startswith("destination") or self.flush_failed()
        if mode != "Fail":
            self.read()

    def settle(self, hit):
        """Half of the devices that are not rw are removed as they are; a new table recovers the
        others.
        """
        mode = self.mode()
        if mode != "rw" and self.serial % 2:
            self.reload()
            if self.mode() == "rw":
                self.read()
                mode = "rw"
        if mode == "rw":
            self.flush()
            self.read()
        before, self.lossy = self.lossy, False
        self.remove()
        assert self.lossy == (mode != "rw"), "the removal did not commit"
        self.lossy |= before

    def gone(self):
        assert self.clone is None
        assert faults.bufio_memory() == self.memory, "a client of dm-bufio is left"
        for disks in self.disks.values():
            if len(disks) == 1:
                wait.until(lambda: disks[0].is_free(), f"{disks[0].path} is free")

    def check_image(self):
        """Regions that the metadata calls hydrated are right on the destination, all others on the
        source.
        """
        image = self.image = metadata.read(self.parts["metadata"])
        assert image.regions == REGIONS
        dest = self.parts["destination"].read(0, SECTORS)
        content = bytearray(self.parts["source"].read(0, SECTORS))
        assert content == self.source, "the source was written to"
        for region in image.hydrated():
            at = region * REGION * 512
            content[at : at + REGION * 512] = dest[at : at + REGION * 512]
        self.content = bytes(content[: SECTORS * 512])
        self.model.check(self.content, "the destination, as the metadata has it")

    def check_again(self):
        """Opened again, the clone agrees with the image. After the rest is hydrated, the
        destination holds everything.
        """
        self.create()
        status = self.clone.look()
        assert (status.mode, status.hydrated) == ("rw", self.image.count)
        assert self.clone.content(SECTORS) == self.content
        self.clone.hydrate()
        self.clone.wait_full()
        self.remove()
        assert self.parts["destination"].read(0, SECTORS) == self.content
        assert metadata.read(self.parts["metadata"]).count == REGIONS


SCENARIO = Clone
