"""The soak driver of the snapshot-merge target: the devices of the snapshot driver. Sometimes a
snapshot is merged into the origin, which stays in use.
"""

import errno

import snapshot
from engine import IDLE, event
from layers import FLAG, SMALL
from lib import cow, snaps, wait


class Front(snapshot.Front):
    """The origin, or what merges into it: then I/O may need the COW device too, and fail with
    it.
    """

    @property
    def merging(self):
        return self.family.merging

    @property
    def name_of_target(self):
        return "snapshot-merge" if self.merging else "snapshot-origin"

    def line(self):
        return self.family.front_line()

    def words(self, inactive):
        return self.merging.words(False) if self.merging else super().words(inactive)

    def load(self):
        if not self.merging:
            return super().load()
        return refused(self.device, self.line())

    def excused(self, op):
        return (
            super().excused(op)
            or bool(self.merging)
            and any(fault.layer in ("real", self.merging.layer) for fault in op.faults)
        )

    def wrote(self, op, durable=False):
        if not self.merging:
            return super().wrote(op, durable)
        for watcher in op.watchers:  # they have it when the chunk is merged, at the latest
            self.family.owed[watcher].update(watcher.chunks(op))
        self.model.wrote(op)

    def do_discard(self, start, count):
        """Discards change nothing during a merge."""
        if not self.merging or not self.merging.form.features:
            return super().do_discard(start, count)
        try:
            self.device.discard(start, count)
        except OSError as error:
            assert error.errno == errno.EOPNOTSUPP or self.error_table, f"discard: {error}"
            return "not supported"

    def look(self):
        if not self.merging or self.error_table:
            return
        text, form = self.device.status(), self.merging.form
        if text == "Merge failed":
            assert self.family.doubtful, "the merge failed for no reason"
            return
        status = snaps.Usage(text)
        assert status.total == form.sectors, text
        assert 2 * form.size <= status.allocated <= form.allocated(len(self.merging.tried)), text

    def check_status(self):
        self.look() if self.merging else super().check_status()


def refused(device, line):
    """There is one merge already."""
    try:
        device.load(line)
    except OSError as error:
        assert error.errno == errno.EINVAL, f"load: {error}"
        return "refused"
    raise AssertionError("a second merge was accepted")


class Family(snapshot.Family):
    """Everything that was acknowledged is there, through all errors, suspends and new tables. When
    all devices work the merge ends, with exactly what the snapshot showed.
    """

    TARGET = "snapshot-merge"
    ORIGIN = 8
    merging = None  # a snapshot that has no device of its own any more
    doubtful = False  # the merge may have failed

    def front_line(self):
        if not self.merging:
            return self.origin_line()
        return self.line(self.merging.slot).replace(" snapshot ", " snapshot-merge ")

    def make_front(self, content):
        if self.merging:
            self.heal()  # so that the store can be read
        super().make_front(content)
        self.front = Front(self, self.front.device, 64, self.front.model.now)

    def origin_line(self):
        return super().origin_line() if not self.merging else self.front_line()

    def noted(self, fault):
        super().noted(fault)
        self.doubtful |= bool(self.merging) and fault.layer in ("real", self.merging.layer)

    def take(self, slot, noflush=False):
        """During a merge the origin's disk holds nothing worth a snapshot."""
        return IDLE if self.merging else super().take(slot, noflush)

    def quiet(self):
        """All devices work, and nothing is in flight."""
        self.heal()
        self.join()

    @event(9, which=SMALL, direct=FLAG)
    def merge(self, which, direct):
        """Merges a live snapshot, or one whose device was removed before."""
        faces = self.snapshots()
        if not faces:
            return IDLE
        face = faces[which % len(faces)]
        slot = face.slot
        self.quiet()
        if face.invalid or face.error_table:
            return IDLE
        for each in (face, self.front):
            if each.pending:
                each.clear()
        line = self.line(slot).replace(" snapshot ", " snapshot-merge ")
        if self.merging or not face.form.persistent:
            device = self.box.mapped()
            refused(device, line)
            device.remove()
            return "refused"
        self.doubtful, self.owed = False, {}
        self.slots[slot], self.merging = None, face
        for other in self.snapshots():
            other.tried |= self.cover(face, face.tried, other)
            self.owed[other] = self.cover(face, face.sure, other)
        self.front.model.now, self.front.model.since = list(face.model.now), {}
        if direct:
            face.device.remove()
            face.check_disk()
            self.front.device.remove()
            self.make_front(None)
            return "directly"
        front = self.box.own(self.front.device)
        front.load(line)
        face.device.load(f"0 {self.sectors} error")
        face.device.suspend()
        front.suspend()
        front.resume()
        face.device.resume()
        face.device.remove()

    def cover(self, face, chunks, other):
        """The chunks of another snapshot that contain these."""
        size = face.region
        return {
            n
            for chunk in chunks
            for n in range(
                chunk * size // other.region,
                -(-min((chunk + 1) * size, self.sectors) // other.region),
            )
        }

    @event(3)
    def merge_again(self):
        """Removes the device and creates it again."""
        if not self.merging:
            return IDLE
        self.quiet()
        self.front.device.remove()
        self.make_front(None)

    @event(3)
    def end_merge(self):
        """When all devices work the merge ends, if need be after a new start."""
        if not self.merging:
            return IDLE
        self.quiet()
        for _ in range(3):
            if wait.until(self.ended, lambda: f"merged ({self.front.device.status()})") == "merged":
                break
            self.tally["merged", "failed"] += 1
            self.front.suspend(False, False)
            self.front.resume()
        else:
            raise AssertionError("it fails though all devices work")
        face, device = self.merging, self.front.device
        store = cow.Store(getattr(self.parts, face.layer))
        assert (
            store.valid and not store.records and not store.tail.strip(b"\0")
        ), "there are records left"
        for other in self.snapshots():
            other.sure |= self.owed[other]
        self.front.read_all()
        assert self.disks["real"].content(self.sectors) == device.content(self.sectors)
        self.merging = None
        device.swap(self.origin_line())
        self.tally["merged", "done"] += 1

    def ended(self):
        return snaps.merge_end(self.front.device.status())

    @event(2)
    def back(self):
        """The rest becomes a snapshot again, and the device of the merge a plain origin."""
        if not self.merging or self.merging.overflowed:
            return IDLE
        self.quiet()
        face, front = self.merging, self.front
        face.device = self.open(face.slot)
        self.merging = None
        front.device.load(self.origin_line())
        front.device.suspend()
        face.device.resume()
        front.device.resume()
        face.base, face.pending, face.suspended = face.device.event, None, False
        face.model.now, face.model.since = list(front.model.now), {}
        front.model.restart(self.disks["real"].content(self.sectors))
        store = cow.Store(getattr(self.parts, face.layer))
        face.tried, face.sure = set(store.taken), set(store.taken)
        self.slots[face.slot] = face

    def finish(self):
        self.end_merge()
        super().finish()


DRIVER = Family
