"""Helpers of the tests of snapshot-merge."""

from . import cow
from .snaps import Family, Gate, Snapshot, Valve


def must_complete(family, call, *args):
    """Asserts that a call ends while a merge is held. It runs in a thread of its own, so that the
    test can end if it does not.
    """
    return family.box.background(call, *args).result()


def scatter(rng, number, size, sectors=4096):
    """Chunks of the origin, in random order and never adjacent, so that C merges each one by
    itself.
    """
    return rng.sample(range(0, sectors // size, 2), number)


class Parts:
    """A family whose devices hold back one kind of I/O of a merge. The first area of the COW device
    is on a disk of its own (`front`).
    """

    KINDS = "COW read", "origin write", "origin flush", "record write", "record read"

    def __init__(self, box):
        self.family = Family(box, cache=True)
        self.real = self.family.real = Valve(box, self.family.disk)
        self.front, self.below = Gate(box, box.ram(1, cache=True)), Gate(
            box, box.ram(8, cache=True)
        )
        self.back = Valve(box, self.below)
        self.cow = box.mapped(
            f"0 16 linear {self.front.dev} 0", f"16 16000 linear {self.back.dev} 0"
        )

    def hold(self, what):
        device, kind = {
            "COW read": (self.back, "reads"),
            "origin write": (self.real, "writes"),
            "origin flush": (self.real, "flushes"),
            "record write": (self.front, None),
            "record read": (self.front, None),
        }[what]
        device.hold(*[kind] if kind else [])
        return device


def back_to_snapshot(family, reload=True):
    """Turns a merge into a snapshot again: another device gets the COW device, and the merging one
    becomes a plain origin if it is reloaded.
    """
    front, old = family.origin, family.merging
    snapshot = family.box.own(Snapshot(old.origin, old.cow, old.kind, old.size, start=False))
    snapshot.load(snapshot.line)
    if reload:
        front.load(front.plain_line)
    front.suspend()
    snapshot.resume()
    front.resume()
    family.merging, front.line = None, front.plain_line
    snapshot.expected, front.expected = front.expected, bytearray(front.content())
    family.snapshots.append(snapshot)
    for each in family.snapshots[
        :
    ]:  # not all data has reached them, and some copies are pending until they are removed
        if each is not snapshot:
            each = family.reopen(each)
        each.copied = set(cow.Store(each.cow).taken)
    return snapshot
