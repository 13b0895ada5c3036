"""The soak driver of the snapshot-origin target: the devices of the snapshot driver, with most of
the I/O to the origin, whose table has three lines.
"""

from snapshot import Family


class Origin(Family):
    TARGET = "snapshot-origin"
    ORIGIN = 8
    PIECES = 3


DRIVER = Origin
