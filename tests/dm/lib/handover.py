"""Handover of exceptions between two tables on one COW device."""

from .box import pattern
from .snaps import Snapshot


def load_destination(family, snapshot):
    """Loads the table of a snapshot on another device: a destination of its exceptions."""
    device = family.box.own(
        Snapshot(snapshot.origin, snapshot.cow, snapshot.kind, snapshot.size, start=False)
    )
    device.load(device.line)
    return device


def succeeds(family, snapshot, device):
    """From now on the model has `device` in place of `snapshot`."""
    device.expected, device.copied = snapshot.expected, snapshot.copied
    family.snapshots[family.snapshots.index(snapshot)] = device


def write_both(family, snapshot, turn):
    """Writes to the snapshot and the origin, some of which need copies."""
    for at in (80, 1000 + 100 * turn):
        family.write(snapshot, at, pattern(f"own {turn}", 11))
        family.write(family.origin, at + 8, pattern(f"new {turn}", 11))
    family.check()
