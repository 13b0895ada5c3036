"""What the tests of snapshot-merge share."""

from . import cow
from .snaps import Family, Gate, Snapshot, Valve


def soon(family, call, *args):
    """What must not wait. It is done by another thread, so that a test which is wrong about it can
    end.
    """
    return family.box.background(call, *args).result()


def scatter(rng, number, size, sectors=4096):
    """Chunks of the origin, in random order; never two behind each other, so that C merges each by
    itself.
    """
    return rng.sample(range(0, sectors // size, 2), number)


class Parts:
    """A family whose devices keep back one kind of I/O of a merge. The COW device has its first
    area in front.
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
    """The device that merges becomes a plain origin, if it is reloaded, and another one what the
    snapshot was.
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
    ]:  # not everything has come to them, and some of it is on its way until they are removed
        if each is not snapshot:
            each = family.reopen(each)
        each.copied = set(cow.Store(each.cow).taken)
    return snapshot
