"""The soak's driver of the snapshot-origin target: the devices of that of snapshot, with most of
the I/O on the origin, which has three lines.
"""

from snapshot import Family


class Origin(Family):
    TARGET = "snapshot-origin"
    ORIGIN = 8
    PIECES = 3


DRIVER = Origin
