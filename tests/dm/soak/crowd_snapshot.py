"""An origin and its snapshots in a crowd: snapshots are taken, merged, taken over and given back
concurrently.
"""

import errno
import time

from crowd import Crowd, Writer, named, no_table, until_quiet
from lib import cow, dm
from lib.box import pattern
from lib.disk import split
from lib.snaps import Origin, Snapshot, merge_end, merge_line

CALM, BETWEEN = "snapshot: merge paused, not yet live", "between preresume and resume"
# The player that begins, the point at which it is held, the number of steps, and the other players:
# what most races need, without others in the way. A merge has begun after five steps of the player
# that hands over to it, and its first batch has not ended yet.
FEW, MANY = (1, 1, 2, 3), (4, 5, 5, 6)
DUETS = (
    ("taker", CALM, MANY, "merger"),
    ("taker", CALM, MANY, "merger"),
    ("owner", BETWEEN, FEW, "heir"),
    ("merger", BETWEEN, FEW, "heir"),
)
DUETS_WITH_MERGE = (
    ("front", BETWEEN, FEW, "heir"),
    ("front", BETWEEN, FEW, "heir"),
    ("front", BETWEEN, MANY, "taker"),
    ("heir", CALM, FEW, "front"),
)
SECTORS = 2048
SIZE = 8
CHUNKS = SECTORS // SIZE
REFUSED = {errno.EINVAL, errno.ENXIO, errno.EBUSY}
SLOW_MS = (
    0,
    20,
    150,
    150,
)  # the time of a write to the origin's disk: copies of a merge stay in flight for long


class Family(Crowd):
    """Three snapshots: `old` may be merged and taken over, `new` is taken during the round, `calm`
    exists all the time.

    - The contents of `calm` never change, nor those of `new` after its resume has returned.
    - What was written to the origin is there, unless a merge replaces it by the contents of `old`.
    - What was written to `old` is in the device that has its COW device in the end: a snapshot, or
      a merge.
    - A snapshot has as many exceptions in memory as its COW device.
    - A merge ends, and changes nothing that its device shows. It changes nothing at all, not even
      the origin, after another device has taken over its COW device.
    """

    NAME = "snapshot"
    LEAST = {
        "taker: take": 4,
        "owner: suspend": 1,
        "front: resume": 4,
        "merger: merge": 2,
        "heir: take over": 1,
        "heir: take over, refused": 1,
        "write to an owner": 50,
        "snapshot live": 4,
        "merge live": 2,
        "merged": 2,
        "write": 100,
        "read": 20,
        "held at between preresume and resume": 2,
        "held at snapshot: merge paused, not yet live": 2,
        "origin unchanged behind a takeover": 1,
    }
    HOLDS = (CALM, BETWEEN) * 4 + (
        "snapshot: leaving, not yet idle",
        "snapshot: idle, not yet off the roster",
    )

    def begin(self, rng):
        box = self.box
        self.disk = box.ram(1)
        self.data = pattern("origin", SECTORS)
        self.disk.fill(self.data)
        self.real = box.mapped(self.fast())
        self.cows = {name: box.ram(2) for name in ("old", "new", "calm")}
        self.origin = box.own(Origin(self.real))
        self.old, self.calm = self.snapshot("old"), self.snapshot("calm")
        for device in self.old, self.calm:
            device.load(device.line)
            device.resume()
        # `old` has exceptions of its own, and others because of writes to the origin.
        for chunk in rng.sample(range(0, CHUNKS, 4), 24):
            self.old.write(chunk * SIZE, pattern(f"old {chunk}", SIZE))
        for chunk in rng.sample(range(1, CHUNKS, 4), 8):
            self.origin.write(chunk * SIZE, pattern(f"origin {chunk}", SIZE))
        self.seen = {"calm": self.content(self.calm, SECTORS)}
        self.before_merge = self.content(self.old, SECTORS)
        self.new = self.heir = None
        self.on_its_way, self.taken_over = {}, None
        on_old = Writer(self, self.old, (chunk * SIZE + 3 for chunk in range(2, CHUNKS, 4)), "old")
        on_origin = Writer(
            self, self.origin, (chunk * SIZE + 5 for chunk in range(3, CHUNKS, 4)), "origin"
        )
        on_origin.also = self.reverted
        on_calm = Writer(
            self, self.calm, (chunk * SIZE + 1 for chunk in range(3, CHUNKS, 8)), "calm"
        )
        self.writers = [on_old, on_origin, on_calm]
        self.was_merging = rng.random() < 0.5
        delay = rng.choice(SLOW_MS)
        self.slow = delay / 1000
        if self.was_merging:
            fails = rng.random() < 0.7  # then something is left to merge when the table is resumed
            if fails:
                self.real.swap(f"0 {SECTORS} flakey {self.disk.dev} 0 0 1 1 error_writes")
            self.hand_over()
            if fails:
                until_quiet(lambda: merge_end(self.origin.status()), "the merge has failed")
                self.real.swap(self.fast(), noflush=True)
            self.writers.remove(on_old)
        if delay:
            self.real.swap(f"0 {SECTORS} delay {self.disk.dev} 0 0 {self.disk.dev} 0 {delay}")
        casts = {
            "taker": [
                (named("take", self.take), set()),
                *self.one_of(rng, 3, *self.controls(lambda: self.new)),
            ],
            "owner": self.one_of(rng, 5, *self.controls(lambda: self.old)),
            "front": (
                self.controls(lambda: self.origin)[:2] * 6
                if self.was_merging and rng.random() < 0.7
                else self.one_of(rng, 7, *self.controls(lambda: self.origin))
            ),
            "merger": [(named("merge", self.hand_over), REFUSED)],
            "heir": [(named("take over", lambda: self.take_over(rng.random)), REFUSED)] * 12,
        }
        names = ["taker"] * (rng.random() < 0.7) + ["front"]
        names += (
            ["heir"] * (rng.random() < 0.7)
            if self.was_merging
            else ["merger"] * (rng.random() < 0.8)
            + rng.choice(([], ["owner"], ["heir"], ["owner", "heir"]))
        )
        if rng.random() < 0.4 and {"merger", "taker"} <= set(names):
            names.remove("front")  # it would only wait for this player
        if rng.random() < 0.6:
            first, point, steps, other = rng.choice(DUETS_WITH_MERGE if self.was_merging else DUETS)
            names, self.duet = [first, other], (first, point, rng.choice(steps))
        self.names = names
        # I/O to a device whose exceptions were handed over fails.
        on_old.bears_errors = on_origin.bears_errors = {"merger", "heir"} & set(
            names
        ) or self.was_merging
        return {name: casts[name] for name in names}

    def fast(self):
        return f"0 {SECTORS} linear {self.disk.dev} 0"

    def snapshot(self, name):
        device = self.box.own(
            Snapshot(self.real, self.cows[name], "P", SIZE, length=SECTORS, start=False)
        )
        return device

    def controls(self, device):
        """Calls on a device that may not exist yet."""

        def call(name, what):
            return named(name, lambda: what(device()) if device() else None), REFUSED

        return (
            call("suspend", lambda device: device.suspend(True)),
            call("resume", lambda device: device.resume()),
            call("suspend", lambda device: device.suspend()),
            call("resume", lambda device: device.resume()),
            call("status", lambda device: device.status()),
            call("load", lambda device: device.load(device.line)),
            call("clear", lambda device: device.clear()),
        )

    # Players

    def take(self):
        """Takes a snapshot of what the origin's disk holds, without suspending the origin."""
        device = self.snapshot("new")
        self.carry_out((device.load, device.line), (device.resume,))
        # Writes in flight to the origin may have begun before the snapshot went live. Then the
        # snapshot shows them some time.
        self.on_its_way = dict(
            writer.current for writer in self.writers if writer.name == "origin" and writer.current
        )
        self.seen["new"] = self.content(device, SECTORS)
        self.new = device

    def hand_over(self):
        """The merged snapshot stops being a snapshot, in LVM2's order."""
        self.carry_out(
            (self.origin.load, merge_line(self.old)),
            (self.old.load, f"0 {SECTORS} error"),
            (self.old.suspend,),
            (self.origin.suspend,),
            (self.origin.resume,),
            (self.old.resume,),
        )

    def take_over(self, chance):
        """Another device takes over the COW device of `old`. While it waits no other player
        continues, so it may give up for a while.
        """
        if self.heir is None:
            self.heir = self.snapshot("old")
        if not self.heir.info().flags & dm._INACTIVE:
            self.carry_out((self.heir.load, self.heir.line))
        try:
            self.heir.resume()
        except OSError:
            if chance() < 0.7:
                self.heir.clear()
                time.sleep(chance() * 0.05)
            raise
        if not self.taken_over and self.heir.info().flags & dm._ACTIVE:
            self.taken_over = self.disk.content(SECTORS)

    # The end

    def devices(self):
        return [
            device for device in (self.old, self.heir, self.origin, self.new, self.calm) if device
        ]

    def settle(self):
        """A device that waits for another one to be suspended or removed gets an error table."""
        self.real.swap(self.fast(), noflush=True)
        for device in self.devices():
            if not no_table(device):
                self.awake(device)
        self.live = {}  # device: the target of its table
        for device in self.devices():
            specs = device.specs() if device.info().flags & dm._ACTIVE else []
            self.live[device] = specs[0][2] if specs else None
            if self.live[device]:
                self.count(
                    f"{'merge' if self.live[device] == 'snapshot-merge' else self.live[device]} "
                    "live"
                )

    def works(self, device):
        try:
            device.read(0, 1)
        except OSError:
            return False
        return True

    def check(self):
        if self.taken_over:
            # Nothing writes to other chunks of the origin.
            bad = [
                sector
                for sector, (before, now) in enumerate(
                    zip(split(self.taken_over), split(self.disk.content(SECTORS)))
                )
                if before != now and sector // SIZE % 4 != 3
            ]
            assert (
                not bad
            ), f"a merge changed what was taken over: {len(bad)} sectors, first {bad[:6]}"
            self.count("origin unchanged behind a takeover")
        on_old, on_origin, on_calm = (
            next((writer for writer in self.writers if writer.name == name), None)
            for name in ("old", "origin", "calm")
        )
        self.steady("calm", self.calm)
        if self.new:
            self.steady("new", self.new)
        # A merge whose exceptions a snapshot has taken over says Invalid, and reads the origin.
        merging = self.live[self.origin] == "snapshot-merge" and self.origin.status() != "Invalid"
        owners = [
            device
            for device in (self.old, self.heir)
            if device and self.live[device] == "snapshot" and self.works(device)
        ]
        assert len(owners) + merging <= 1, (
            f"one COW device is used by {[device.status() for device in owners]}, and by a "
            f"merge: {merging}, "
            f"{self.origin.status()}; cast {self.names}"
        )
        if self.live[self.origin] == "snapshot-origin":
            on_origin.check(self.content(self.origin, SECTORS), "origin")
        for owner in owners:
            self.owns(owner, on_old)
        if merging:
            if merge_end(self.origin.status()) == "Merge failed":
                self.origin.suspend()
                self.origin.resume()
            content = self.content(self.origin, SECTORS)
            if on_old:
                on_old.check(content, "merge")
            on_origin.check(content, "merge")
            end = until_quiet(lambda: merge_end(self.origin.status()), "merged")
            assert end == "merged", end
            self.count("merged")
            assert (
                self.content(self.origin, SECTORS) == content
            ), "the merge changed what its device shows"
            assert split(self.disk.content(SECTORS)) == content, "disk of the origin"
            self.steady("calm", self.calm)
            if self.new:
                self.steady("new", self.new)
        for name, device in ("calm", self.calm), ("new", self.new):
            if device and self.live[device] == "snapshot":
                self.whole(device, name)
        # Writes to the origin's disk, which must not change what any snapshot shows.
        if self.live[self.origin] == "snapshot-origin":
            for chunk in range(0, CHUNKS, 3):
                self.origin.write(chunk * SIZE, pattern("late", SIZE))
            self.steady("calm", self.calm)
            if self.new:
                self.steady("new", self.new)

    def owns(self, owner, on_old):
        """The snapshot that has the COW device of `old` in the end is the only one that writes to
        it, and nothing writes to the origin any more. So what is written to the snapshot persists,
        also when it is created again from the disk.
        """
        disk = self.disk.content(SECTORS)
        if on_old:
            on_old.check(self.content(owner, SECTORS), "owner of the COW device")
        want = self.content(owner, SECTORS)
        for chunk in range(1, CHUNKS, 5):
            data = pattern(f"owner {chunk}", SIZE)
            owner.write(chunk * SIZE, data)
            want[chunk * SIZE : (chunk + 1) * SIZE] = split(data)
            self.count("write to an owner")
        assert (
            self.content(owner, SECTORS) == want
        ), f"the owner of the COW device forgets: {self.names}"
        assert (
            self.disk.content(SECTORS) == disk
        ), f"a merge changed what a snapshot has: {self.names}"
        self.whole(owner, "old")
        owner.remove()
        again = self.snapshot("old")
        again.load(again.line)
        again.resume()
        assert (
            self.content(again, SECTORS) == want
        ), f"on its COW device is something else: {self.names}"
        again.remove()

    def reverted(self, sector):
        """What the merge writes to the origin."""
        return (
            {self.before_merge[sector], split(self.data)[sector]}
            if {"merger"} & set(self.names) or self.was_merging
            else set()
        )

    def steady(self, name, device):
        """A snapshot shows what it did before, and what was written to it."""
        assert self.live[device] == "snapshot", f"{name}: {self.live[device]}"
        got = self.content(device, SECTORS)
        written = set(next((writer.may for writer in self.writers if writer.name == name), ()))
        late = self.on_its_way if name == "new" else {}
        bad = [
            sector
            for sector, data in enumerate(got)
            if sector not in written and data not in (self.seen[name][sector], late.get(sector))
        ]
        assert not bad, (
            f"snapshot {name}: {len(bad)} sectors have changed, first {bad[:6]}; cast "
            f"{self.names}, merging from "
            f"the start: {self.was_merging}"
        )
        for writer in self.writers:
            if writer.name == name:
                writer.check(got, name)

    def whole(self, device, name):
        """The status agrees with the COW device."""
        device.flush()
        store = cow.Store(self.cows[name])
        self.cows[name].close()
        assert not store.repeated and store.valid == 1
        places = device.exceptions()  # a merge leaves gaps
        assert (
            places == len(store.taken) or name == "old" and places >= len(store.taken)
        ), f"snapshot {name}: {places} exceptions in memory, {len(store.taken)} on the COW device"

    def close(self):
        for device in self.devices():
            if not device.gone:
                device.remove()
