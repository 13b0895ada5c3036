"""The soak driver of the era target."""

import errno
import subprocess
import threading
import time
from pathlib import Path

from hypothesis import strategies as st

from engine import IDLE, event
from layers import FAULT, FLAG, SMALL, Layers
from lib import eras, wait
from lib.box import pattern
from lib.metadata import Damaged

MIB = 5
SIZES = 8, 24, 128, 1024
ENTRIES = 1018  # of the array, per block
# Sectors less than the origin has: the last block is short, or just full. The last value leaves
# 1018 blocks of 8 sectors.
SHORT = 0, 1, 27, 1000, MIB * 2048 - ENTRIES * 8
LAYERS = "origin", "meta"
NEVER, ANY = 0, 1 << 40  # eras

MESSAGES = {  # words: errno; messages with methods of their own are not here
    "nonsense": errno.EINVAL,
    "checkpoint now": errno.EINVAL,
    "take_metadata_snap 1": errno.EINVAL,
    "drop_metadata_snap all of it": errno.EINVAL,
    "check": errno.EINVAL,
    "checkpoint2": errno.EINVAL,
}
BAD_LINES = {  # what replaces the arguments after the devices: errno
    "": errno.EINVAL,
    "7": errno.EINVAL,
    "0": errno.EINVAL,
    "{size} 1": errno.EINVAL,
    "{size}x": errno.EINVAL,
    "-8": errno.EINVAL,
    "{other}": errno.EINVAL,  # a block size unlike that of the metadata
}
# System calls that write, as /proc/*/syscall numbers them: ioctl, pwritev, pwritev2.
WRITING = {"16", "296", "328"}
ONE_BIO = 512  # sectors: a larger write may be several bios, which end one after the other


def inside_a_write(task):
    """Whether a thread sleeps in a system call that writes."""
    try:
        return Path(f"/proc/self/task/{task}/syscall").read_text().split()[0] in WRITING
    except OSError:
        return False


class Era(Layers):
    """An era device, whose table may be shorter than the origin, over layers that can fail or hold.

    For each block two bounds of its era are known. `least` was the present era when the last write
    began that was acknowledged, or that failed but is visible on the origin. `most` was the last
    era that had begun when the last write ended, whatever its result. Without overlapping
    operations both are equal.

    A write that is in flight when a checkpoint has returned belongs to the era that began: see
    `began`.

    I/O may fail only for a reason: a fault of the origin that it met while in flight, for writes
    also any fault of the metadata, or the error table. Metadata operations fail only with a fault
    of the metadata's layer.
    """

    TARGET = "era"
    BAD_LINES = BAD_LINES
    SETUP = dict(size=st.integers(0, len(SIZES) - 1), short=st.integers(0, len(SHORT) - 1))

    def __init__(self, box, setup, tally):
        self.pair = eras.Pair(box, mib=MIB)
        self.data = pattern("origin", MIB * 2048)
        self.pair.origin_disk.fill(self.data)
        self.pair.layered(*LAYERS)
        super().__init__(box, setup, tally, self.pair, self.data)
        self.region = self.size = SIZES[setup["size"]]
        self.sectors = MIB * 2048 - SHORT[setup["short"]]
        count = MIB * 2048 // 8
        self.least, self.most = [NEVER] * count, [NEVER] * count
        self.ended = set()  # blocks of writes that have ended since the status was read
        self.number = 0  # the last era that was seen
        self.snapshot = None  # its block
        self.frozen = None  # the bounds of what it says
        self.unsure = False  # whether there is a snapshot
        self.open_era = (
            False  # the last era may not have been archived when the device was suspended
        )
        self.make()

    # The device

    @property
    def blocks(self):
        return -(-self.sectors // self.size)

    def line(self, sectors):
        return f"0 {sectors} era {self.pair.meta.dev} {self.pair.origin.dev} {self.size}"

    def make(self):
        pair = self.pair
        self.device = self.box.own(
            eras.Era(pair.meta, pair.origin, self.size, start=False, length=self.sectors)
        )
        self.pending = None
        self.suspended = self.error_table = self.trouble = False
        self.new_faults()
        try:
            self.device.load(self.line(self.sectors))
            self.device.resume()
        except OSError as error:
            assert (
                error.errno == errno.EIO and "meta" in self.faults
            ), f"created with {self.faults}: {error}"
            self.heal()
            self.device.load(self.line(self.sectors))
            self.device.resume()
        self.open_era = False
        self.go_live(self.sectors)
        self.began(self.number)

    def go_live(self, sectors):
        """A table is live."""
        if sectors < self.sectors:
            for block in range(-(-sectors // self.size), len(self.least)):
                self.least[block] = NEVER  # what an archived era says of it may come back
        self.sectors = sectors
        self.limits_unsure = "origin" in self.faults

    # Faults, and what they excuse

    def noted(self, fault):
        if fault.layer == "origin":
            self.limits_unsure = True
        else:
            self.trouble = True

    def expose(self, op):
        super().expose(op)
        op.unsupported |= self.limits_unsure

    def prepare(self, op):
        op.unsupported = False
        op.task, op.era = threading.get_native_id(), self.number
        super().prepare(op)

    def excused(self, op):
        if op.anything:
            return True
        for fault in op.faults:
            if fault.layer == "meta":
                if op.kind not in ("read", "flush"):
                    return True
            elif op.kind in ("flush", "discard"):
                return True
            elif fault.meets(op.start, op.end) and (
                fault.reads if op.kind == "read" else fault.writes
            ):
                return True
        return op.kind == "discard" and op.unsupported

    # I/O

    def origin_of(self, sector, value):
        return (
            "what the origin held before"
            if value == self.data[sector * 512 : sector * 512 + 512]
            else super().origin_of(sector, value)
        )

    def touched(self, start, end):
        return range(start // self.size, -(-end // self.size))

    def mark(self, blocks, era):
        """These blocks were written in this era or later."""
        for block in blocks:
            self.least[block] = max(self.least[block], era)

    def over(self, op, certain):
        """A write has ended. It must be listed if this is certain, or where the origin holds it."""
        seen = set()
        if not certain and op.kind == "write":
            disk = self.pair.origin_disk.read(op.start, op.end - op.start)
            here = [
                n
                for n in range(op.start, op.end)
                if disk[(n - op.start) * 512 :][:512] in op.values(n)
            ]
            seen = {n // self.size for n in here}
        blocks = self.touched(op.start, op.end)
        with self.model.lock:
            self.ended.update(blocks)
            self.mark(blocks if certain else seen, op.era)
        self.tally["failed write", "on the origin"] += bool(seen)

    def failed(self, op, error):
        if op.changes:
            # Only a fault of the metadata, or the error table, can stop a write.
            through = (
                not op.anything
                and not any(fault.layer == "meta" for fault in op.faults)
                and op.end <= self.sectors
            )
            self.over(op, through and error.errno == errno.EIO)
        return super().failed(op, error)

    def wrote(self, op, durable=False):
        self.over(op, True)
        self.model.wrote(op, durable)

    def do_flush(self):
        op = self.model.begin("flush")
        try:
            self.device.flush()
        except OSError as error:
            return self.failed(op, error)
        self.model.flushed(op)

    def do_discard(self, start, count):
        disk = self.pair.origin_disk
        op = self.model.begin("discard", start, count, bytes(count * 512), disk.read(start, count))
        op.flushes = False
        try:
            self.device.discard(start, count)
        except OSError as error:
            return self.failed(op, error)
        below = disk.read(start, count)
        certain = not op.anything
        if certain and not op.faults and not op.clashes:
            assert not any(below), f"{op} left data behind"
        self.over(op, certain)
        self.model.discarded(op, 1, certain, below)

    # Status and messages

    def look(self):
        """Compares the status with all that is known; returns None if it is `Error`."""
        with self.model.lock:
            ended, self.ended = self.ended, set()
        text = self.device.status()
        if text == "Error":
            assert self.trouble, "Error without a reason"
            with self.model.lock:
                self.ended |= ended
            return None
        status = eras.Status(text)
        assert status.era >= self.number, f"{text}: the era was {self.number}"
        assert status.used <= status.total == 256, text
        with self.model.lock:
            self.number = status.era
            for block in ended:
                self.most[block] = max(self.most[block], status.era)
        if self.unsure:
            self.snapshot, self.unsure = status.snapshot, False
        assert status.snapshot == self.snapshot, f"{text}: the metadata snapshot is {self.snapshot}"
        return status

    def check(self):
        self.reap()
        self.look()

    def calm(self):
        """A metadata operation has succeeded."""
        if "meta" not in self.faults:
            self.trouble = False

    def began(self, before):
        """An operation has begun an era: what is in flight now, and may end at any time, belongs to
        it.
        """
        self.calm()
        status = self.look()
        if not status:
            return
        assert status.era > before, f"the era is {status.era} as before"
        with self.model.lock:
            for op in self.model.active:
                one = op.flushes is False and op.end - op.start <= ONE_BIO  # the write itself waits
                if op.changes and one and op.era < status.era and inside_a_write(op.task):
                    self.tally["write", "in flight at the end of an era"] += 1
                    op.era = status.era

    def tell(self, words, wanted=0):
        """Sends a message. Returns None, or a word for another outcome."""
        status = self.look()
        self.unsure |= "snap" in words and not wanted
        try:
            self.patiently(self.device.message, words)
        except OSError as error:
            if wanted and error.errno == wanted:
                self.unsure = False
                now = self.look()
                assert (
                    not status or not now or now.era == status.era
                ), f"{words} was refused, and began an era"
                return "refused"
            # The end of an era flushes the origin.
            assert error.errno == errno.EIO and (
                "meta" in self.faults or "origin" in self.faults and "drop" not in words
            ), f"{words}: {error}"
            self.look()
            return "failed"
        assert not wanted, f"{words} was accepted"

    @event(8)
    def checkpoint(self):
        before = self.number
        outcome = self.tell("checkpoint")
        if not outcome:
            if self.suspended:
                return "suspended"
            self.began(before)
        return outcome

    def bounds(self):
        """The least and the greatest possible last era of each block."""
        with self.model.lock:
            most = list(self.most)
            for op in self.model.active:
                if op.changes:
                    for block in self.touched(op.start, op.end):
                        most[block] = ANY
            for block in self.ended:
                most[block] = ANY
            return list(self.least), most

    @event(5)
    def take(self):
        if self.snapshot or self.unsure:
            return self.tell("take_metadata_snap", errno.EINVAL) if self.snapshot else IDLE
        least, before = self.bounds()[0], self.number
        outcome = self.tell("take_metadata_snap")
        self.frozen = None
        if outcome:
            return outcome
        if not self.suspended:
            self.began(before)
        else:
            self.open_era = False
            self.look()
        assert self.snapshot or self.unsure, "there is no snapshot"
        self.frozen = least, self.bounds()[1]

    @event(4)
    def drop(self):
        if self.unsure:
            return IDLE
        outcome = self.tell("drop_metadata_snap", 0 if self.snapshot else errno.EINVAL)
        if not outcome:
            self.calm()
            assert not (self.look() and self.snapshot), "it is still there"
        return outcome

    @event(6)
    def listing(self):
        """The content of the metadata snapshot, or of one that is made for this."""
        if self.unsure:
            return IDLE
        if self.snapshot:
            if self.frozen:
                self.compare(self.image(self.snapshot).eras(), *self.frozen)
                return "again"
            return "unknown"
        outcome = self.take()
        if outcome or self.unsure:
            return outcome or "unsure"
        self.compare(self.image(self.snapshot).eras(), *self.frozen)
        return self.drop()

    def image(self, at=0):
        try:
            return eras.Metadata(self.pair.meta_disk.content(), at)
        except Damaged as damage:
            raise AssertionError(f"metadata on disk: {damage}") from damage

    def compare(self, found, least, most):
        """Nothing is missing, and nothing is listed that was not written."""
        found = found + [NEVER] * (len(least) - len(found))
        missing = [
            f"{n}: {era} instead of {least[n]}" for n, era in enumerate(found) if era < least[n]
        ]
        assert (
            not missing
        ), f"{len(missing)} blocks were written later than listed: {', '.join(missing[:8])}"
        extra = [f"{n}: {era} instead of {most[n]}" for n, era in enumerate(found) if era > most[n]]
        assert (
            not extra
        ), f"{len(extra)} blocks are listed that were not written: {', '.join(extra[:8])}"
        self.tally["blocks compared", "exactly"] += sum(0 < a == b for a, b in zip(least, most))
        self.tally["blocks compared", "not exactly"] += sum(a < b for a, b in zip(least, most))

    @event(2, words=st.sampled_from(list(MESSAGES)))
    def bad_message(self, words):
        return self.tell(words, MESSAGES[words])

    @event(2)
    def killed(self):
        """A process that waits for the end of an era is killed. The era may have ended, but nothing
        was promised.
        """
        if self.suspended:
            return IDLE
        self.release()
        self.hold_layer("origin")
        for block in 0, 1:
            self.spawn(self.do_write, *self.extent(block * self.size, 1))
        process = subprocess.Popen(
            ["dmsetup", "message", self.device.name, "0", "checkpoint"], stderr=subprocess.DEVNULL
        )
        try:
            before, done = self.number, process.wait(0.05)
        except subprocess.TimeoutExpired:
            process.kill()
            try:
                done = process.wait(1)
            except subprocess.TimeoutExpired:  # it waits for earlier writes, and flushes the origin
                self.release()
                process.wait(wait.DEADLINE)
                return "while flushing"
        if done == 0:
            self.began(before)
            return "had ended"
        assert done < 0 or self.faults, f"dmsetup failed: {done}"

    @event(2, inactive=FLAG)
    def table(self, inactive):
        rows = self.device.specs(table=True, inactive=inactive)
        sectors = self.pending if inactive else self.sectors
        words = f"{self.pair.meta.dev} {self.pair.origin.dev} {self.size}"
        assert rows == ([] if sectors is None else [(0, sectors, "era", words)])
        if inactive and rows:
            text = self.device.specs(inactive=True)[0][3]
            assert text == "Error" and self.trouble or eras.Status(text).era >= self.number
        return None if rows else "none loaded"

    # Suspend, resume, tables

    @event(5, noflush=FLAG, lockfs=FLAG)
    def suspend(self, noflush, lockfs):
        again = self.suspended
        self.patiently(self.device.suspend, noflush, lockfs)
        self.suspended = True
        if again:
            self.look()
            return "again"
        self.open_era = "meta" in self.faults
        self.calm()
        self.look()

    @event(8)
    def resume(self):
        if not self.suspended and self.pending is None:
            self.device.resume()
            return "again"
        before = self.number
        if self.pending is not None:
            self.go_live(self.pending)
            self.pending = None
        self.open_era |= "meta" in self.faults
        try:
            self.patiently(self.device.resume)
        except OSError as error:
            assert error.errno == errno.EIO and "meta" in self.faults, f"resume: {error}"
            self.suspended = True
            assert self.device.suspended
            return "failed"
        self.suspended = self.open_era = False
        self.began(before)

    @event(4)
    def load(self):
        return self.load_table(self.sectors)

    def load_table(self, sectors):
        self.device.load(self.line(sectors))
        self.pending = sectors

    @event(2, words=st.sampled_from(list(BAD_LINES)))
    def load_bad(self, words):
        self.refused(words)

    def bad_line(self, words):
        words = words.format(size=self.size, other=16 if self.size != 16 else 32)
        return f"0 {self.sectors} era {self.pair.meta.dev} {self.pair.origin.dev} {words}"

    @event(3, noflush=FLAG)
    def swap(self, noflush):
        self.suspend(noflush, False)
        self.load()
        return self.resume()

    @event(5, by=st.integers(-40, 40), odd=st.integers(0, 9))
    def resize(self, by, odd):
        """Loads a table that is longer or shorter by some blocks and sectors; with 0, one with as
        many blocks as fit into one block of the array.
        """
        blocks = self.sectors // self.size + by if by else ENTRIES
        sectors = max(self.size, min(blocks * self.size + odd, MIB * 2048))
        if sectors < self.sectors:
            self.join()  # nothing is in flight to what is cut off
        self.suspend(False, False)
        self.load_table(sectors)
        return self.resume()

    # Removal

    @event(4, suspended=FLAG)
    def recreate(self, suspended):
        """Removes the device, live or suspended, and creates it over what is on disk."""
        self.join()
        self.release()
        if suspended:
            self.suspend(False, False)
        return self.remove()

    @event(2, now=FLAG)
    def remove_force(self, now):
        """What dmsetup remove --force does: loads a table that fails everything under the present
        I/O, then removes the device.
        """
        self.fail_everything(now)
        return self.remove()

    def remove(self):
        self.device.remove()
        return self.reopen("meta" in self.faults or self.open_era)

    def reopen(self, trouble):
        """The device is gone: its metadata is in order and complete, and a new device continues."""
        image = self.image()
        assert image.era >= self.number, f"era {image.era} on disk, it was {self.number}"
        if not trouble:
            assert not image.bitset_root, "the last era is not archived"
        with self.model.lock:
            for block in self.ended:
                self.most[block] = max(self.most[block], image.era)
            self.ended.clear()
        self.compare(image.eras(), *self.bounds())
        if not self.unsure:
            assert image.snapshot == (
                self.snapshot or 0
            ), f"snapshot {image.snapshot} on disk, it was {self.snapshot}"
        self.unsure = True
        # The space map may keep some blocks of the previous transaction.
        assert (
            len(image.leaked) < 10
        ), f"{len(image.leaked)} blocks are in use without a reference: {image.leaked}"
        self.make()
        return "with a fault" if trouble else None

    # Failing devices

    @event(5, layer=st.sampled_from(LAYERS), **FAULT)
    def fault(self, layer, kind, start, count):
        self.break_layer(layer, kind, start, count)

    @event(6, layer=st.sampled_from(["origin", "origin", "meta"]), writes=SMALL)
    def hold(self, layer, writes):
        """I/O that arrives at the layer waits; some writes begin it."""
        if layer in self.held:
            return IDLE
        self.hold_layer(layer)
        for n in range(min(writes, 4)):
            self.spawn(self.do_write, *self.extent(n * self.size + n, 2))
        time.sleep(0.002)

    def finish(self):
        """All devices work: nothing is missing in the list, or on the origin."""
        self.heal()
        self.release()
        self.join()
        self.run()
        assert self.checkpoint() is None
        status = self.look()
        assert status, "the metadata has not recovered"
        if self.snapshot:
            self.listing()
            self.drop()
        assert self.listing() is None
        self.do_write(0, 1)
        self.recreate(suspended=False)
        self.read_all()
        self.device.wait_digested()
        self.recreate(suspended=False)
        assert self.pair.origin_disk.content(self.sectors) == self.device.content(self.sectors)


DRIVER = Era
