"""Handover of exceptions between two tables on one COW device."""

from .box import pattern
from .snaps import Snapshot


def load_destination(family, snapshot):
    """Another device with the same table, loaded over the live one: a destination of its
    exceptions.
    """
    device = family.box.own(
        Snapshot(snapshot.origin, snapshot.cow, snapshot.kind, snapshot.size, start=False)
    )
    device.load(device.line)
    return device


def succeeds(family, snapshot, device):
    """Another device is from now on what a snapshot was."""
    device.expected, device.copied = snapshot.expected, snapshot.copied
    family.snapshots[family.snapshots.index(snapshot)] = device


def write_both(family, snapshot, turn):
    """Some writes to both sides, that need copies and that do not."""
    for at in (80, 1000 + 100 * turn):
        family.write(snapshot, at, pattern(f"own {turn}", 11))
        family.write(family.origin, at + 8, pattern(f"new {turn}", 11))
    family.check()
