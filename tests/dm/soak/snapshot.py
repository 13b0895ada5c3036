"""The soak driver of the snapshot target: an origin and up to three snapshots, which come and
go.
"""

import errno
import time
from types import SimpleNamespace

from hypothesis import strategies as st

import model
from engine import IDLE, event
from layers import FAULT, FLAG, SMALL, Layers
from lib import snaps
from lib.box import pattern
from snapshot_faces import BAD_LINES, FORMS, SLOTS, Form, Front, Snapshot

MIB = 4


def on_any(name):
    """An event of one device, for any device of the family."""
    method = getattr(Layers, name)
    weight, arguments = method.event

    @event(weight, which=SMALL, **arguments)
    def chosen(self, which, **arguments):
        return method(self.pick(which), **arguments)

    return chosen


class Family(Layers):
    """The origin's disk and three COW devices, each behind a layer that can fail or hold, and the
    devices over them.

    I/O to the origin fails only if its own disk does. I/O to a snapshot may fail if a device that
    it needs does, or if the snapshot has a reason to be invalid. Snapshots are taken, opened and
    removed while the origin is suspended, as by LVM2.
    """

    TARGET = "snapshot"
    SETUP = {f"form{n}": st.integers(0, FORMS - 1) for n in range(SLOTS)} | {
        "short": st.sampled_from([0, 1, 27, 1000])
    }
    ORIGIN = 1  # the origin's weight when a device is picked; a snapshot has 2
    PIECES = 1  # lines of the origin's table

    def __init__(self, box, setup, tally):
        self.disks = {
            "real": box.ram(MIB),
            **{f"cow{n}": box.ram(2 * MIB + 1) for n in range(SLOTS)},
        }
        self.forms = [Form(setup[f"form{n}"], self.disks[f"cow{n}"]) for n in range(SLOTS)]
        data = pattern("origin", MIB * 2048)
        self.disks["real"].fill(data)
        lengths = {f"cow{n}": form.sectors for n, form in enumerate(self.forms)} | {
            "real": MIB * 2048 - setup["short"]
        }
        parts = SimpleNamespace(
            **{name: box.layered(disk, sectors=lengths[name]) for name, disk in self.disks.items()}
        )
        super().__init__(box, setup, tally, parts, b"")
        self.sectors, self.slots = lengths["real"], [None] * SLOTS
        self.front = None
        self.make_front(data[: self.sectors * 512])
        self.take(0)

    # The devices

    def faces(self):
        return [self.front, *self.snapshots()]

    def snapshots(self):
        return [face for face in self.slots if face]

    def pick(self, which):
        return ([self.front] * self.ORIGIN + self.snapshots() * 2)[
            which % (self.ORIGIN + 2 * len(self.snapshots()))
        ]

    def origin_line(self):
        ends = [self.sectors * n // self.PIECES // 8 * 8 for n in range(self.PIECES)] + [
            self.sectors
        ]
        return "\n".join(
            f"{start} {end - start} snapshot-origin {self.parts.real.dev}"
            for start, end in zip(ends, ends[1:])
        )

    def line(self, slot):
        cow_device = getattr(self.parts, f"cow{slot}")
        return (
            f"0 {self.sectors} snapshot {self.parts.real.dev} {cow_device.dev} "
            f"{self.forms[slot].words}"
        )

    def make_front(self, content):
        device = self.box.mapped(self.origin_line())
        now = self.front.model.now if self.front else model.split(content)
        self.front = Front(self, device, 64, now)

    def noted(self, fault):
        for face in self.snapshots():
            face.noted(fault)

    def expose_all(self):
        for face in self.faces() if self.front else ():
            with face.model.lock:
                for op in face.model.active:
                    face.expose(op)

    def check(self):
        self.reap()
        for face in self.faces():
            face.look()

    # Events of all devices

    read, write, write_regions, flush, discard, zero_out, stream, remove_open = map(
        on_any,
        ("read", "write", "write_regions", "flush", "discard", "zero_out", "stream", "remove_open"),
    )

    def run(self):
        self.release()
        for face in self.faces():
            if face.suspended:
                face.resume()

    @event(2)
    def join(self):
        """Releases everything, waits for the I/O in flight, and learns which snapshots are
        invalid.
        """
        idle = not self.threads
        self.run()
        self.finish_threads()
        self.lingering.clear()
        for face in self.faces():
            face.calm()
        return IDLE if idle else None

    @event(3, which=SMALL, noflush=FLAG)
    def status(self, which, noflush):
        """Reads the status, with a flush if that does not have to wait."""
        face = self.pick(which)
        face.device.status(noflush=noflush or bool(self.held) or face.suspended)
        face.check_status() if not face.error_table else None

    @event(2, which=SMALL, inactive=FLAG)
    def table(self, which, inactive):
        face = self.pick(which)
        rows = face.device.specs(table=True, inactive=inactive)
        if inactive and not face.pending:
            assert rows == []
            return "none loaded"
        assert {(kind, text) for _, _, kind, text in rows} == {
            (face.name_of_target, face.words(inactive))
        }, rows

    @event(5, which=SMALL, noflush=FLAG, lockfs=FLAG)
    def suspend(self, which, noflush, lockfs):
        return self.pick(which).suspend(noflush, lockfs)

    @event(8, which=SMALL)
    def resume(self, which):
        return self.pick(which).resume()

    @event(4, which=SMALL)
    def load(self, which):
        return self.pick(which).load()

    @event(2, which=SMALL)
    def clear(self, which):
        return Layers.clear(self.pick(which))

    @event(2, which=SMALL, words=st.sampled_from(list(BAD_LINES)))
    def load_bad(self, which, words):
        face = self.pick(which)
        if face is self.front or face.pending:  # a line without mistakes would be refused too
            return IDLE
        face.refused(words)

    @event(5, which=SMALL, noflush=FLAG)
    def swap(self, which, noflush):
        """Replaces the table."""
        face = self.pick(which)
        face.suspend(noflush, False)
        face.load()
        return face.resume()

    # Creation and removal of snapshots

    def with_origin_suspended(self, call):
        """As LVM2 does."""
        was = self.front.suspended
        self.front.suspend(False, False)
        try:
            return call()
        finally:
            if not was:
                self.front.resume()

    @event(4, slot=st.integers(0, SLOTS - 1), noflush=FLAG)
    def take(self, slot, noflush=False):
        """Takes a snapshot of what the origin holds now, in place of the one in the slot."""
        if self.slots[slot]:
            self.remove(slot)
        form = self.forms[slot]
        self.disks[f"cow{slot}"].write(0, bytes(4096))
        device = self.open(slot)
        if not device:
            return "failed"
        was = self.front.suspended
        self.front.suspend(noflush, False)
        # Before it is live: the model of the snapshot excludes later writes.
        with self.front.model.lock:
            face = Snapshot(self, slot, form, device, self.front.model.now)
            for op in self.front.model.active:
                if op.changes:
                    face.touched(op)
            self.slots[slot] = face
        self.new_faults()
        face.patiently(device.resume)
        if not was:
            self.front.resume()

    def open(self, slot):
        """A loaded table for a COW device; None if the device below cannot be read or written."""
        device = self.box.own(
            snaps.Snapshot(
                self.parts.real,
                getattr(self.parts, f"cow{slot}"),
                self.forms[slot].kind,
                self.forms[slot].size,
                length=self.sectors,
                start=False,
            )
        )
        try:
            self.patiently(device.load, self.line(slot))
        except OSError as error:
            assert (
                error.errno == errno.EIO and f"cow{slot}" in self.faults
            ), f"loaded with {self.faults}: {error}"
            device.remove()
            return None
        return device

    @event(2, slot=st.integers(0, SLOTS - 1))
    def drop(self, slot):
        if not self.slots[slot]:
            return IDLE
        self.remove(slot)

    def remove(self, slot):
        """Removes the snapshot and frees its slot."""
        face = self.slots[slot]
        self.join()

        def gone():
            face.look()
            face.device.remove()
            if not face.error_table:
                face.check_disk()
            self.slots[slot] = None

        self.with_origin_suspended(gone)

    @event(4, slot=st.integers(0, SLOTS - 1))
    def recreate(self, slot):
        """Creates a snapshot again from its COW device, without a write to the origin in
        between.
        """
        face = self.slots[slot]
        if not face or not face.form.persistent or face.invalid or face.error_table:
            return IDLE
        self.join()
        if face.invalid:
            return "invalid"

        def again():
            face.device.remove()
            face.check_disk()
            face.pending = None
            face.device = self.open(slot)
            if not face.device:
                self.slots[slot] = None
                return "failed"
            face.overflowed = False
            face.base = face.device.event
            face.device.resume()

        return self.with_origin_suspended(again)

    @event(2, which=SMALL, now=FLAG)
    def remove_force(self, which, now):
        """What dmsetup remove --force does: loads a table that fails everything under the present
        I/O, then removes the device.
        """
        face = self.pick(which)
        self.run()
        face.fail_everything(now)
        face.pending = None
        self.join()
        if face is not self.front:
            self.slots[face.slot] = None
            face.device.remove()
            return "snapshot"
        face.device.remove()
        self.make_front(None)
        return "origin"

    # Failing devices

    @event(5, layer=st.sampled_from(["real", *(f"cow{n}" for n in range(SLOTS))]), **FAULT)
    def fault(self, layer, kind, start, count):
        self.break_layer(layer, kind, start, count)

    @event(6, layer=st.sampled_from(["real", *(f"cow{n}" for n in range(SLOTS))]), writes=SMALL)
    def hold(self, layer, writes):
        """I/O that arrives at the layer waits; some writes begin it."""
        if layer in self.held:
            return IDLE
        self.hold_layer(layer)
        for n in range(min(writes, 6)):
            face = self.pick(n)
            self.spawn(face.do_write, *face.extent(n * 5, 2))
        time.sleep(0.002)

    def finish(self):
        """All devices work: each snapshot has everything or a reason to be invalid, and new ones
        can be taken.
        """
        self.heal()
        self.join()
        for slot, face in enumerate(self.slots):
            if face:
                self.finish_snapshot(slot, face)
        self.front.read_all()
        assert self.disks["real"].content(self.sectors) == self.front.device.content(self.sectors)
        for slot in range(SLOTS):
            assert self.take(slot) is None
            self.slots[slot].read_all()

    def finish_snapshot(self, slot, face):
        if face.invalid:
            for call in lambda: face.device.read(0, 1), lambda: face.device.write(0, bytes(512)):
                try:
                    call()
                except OSError as error:
                    assert error.errno == errno.EIO
                else:
                    raise AssertionError("it is invalid, and can be used")
            return
        face.read_all()
        if not face.overflowed:
            face.do_write(0, 1)
        face.do_flush()
        self.join()
        self.recreate(slot)
        if not face.invalid:
            face.read_all()


DRIVER = Family
