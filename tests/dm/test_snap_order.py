"""snapshot and snapshot-origin: the order in which data, flushes and records reach the disks."""

import pytest

from lib import cow, wait
from lib.box import assert_same, pattern
from lib.disk import in_flight
from lib.logwrites import Recorder, write_fua
from lib.snaps import Family, Gate, chunk_of


def test_flush_goes_to_one_device(impl, box):
    """A flush of the snapshot goes to the COW device, one of the origin to the origin, and neither
    makes an exception.
    """
    family = Family(box, cache=True)
    snapshot = family.snap("P", 8)
    disks = family.disk, snapshot.cow.lower
    for device, flushes in ((snapshot, (0, 1)), (family.origin, (1, 0))):
        before = [disk.stats() for disk in disks]
        device.flush()
        done = [disk.stats() - stats for disk, stats in zip(disks, before)]
        assert tuple(one.flushes for one in done) == flushes
        assert not any(one.write_sectors for one in done)


def order(recorder):
    """What was written to the origin and to the COW device, with the flushes, in order, in the
    words of the tests below.
    """
    words = []
    for entry in recorder.entries():
        if entry.where == "dest":
            words.append("flush origin" if entry.flush else f"origin {entry.sectors[0][0]}")
        elif entry.flush:
            words.append("flush")
        else:
            first, last = entry.sectors[0][0] // 8, entry.sectors[-1][0] // 8
            word = "header" if first == 0 else "record" if first == last == 1 else f"data {first}"
            words.append(f"{word}{' FUA' if entry.fua else ''}")
    return words


@pytest.fixture
def recorded(impl, box):
    """A family whose origin and COW device are on one log."""
    recorder = Recorder(box, 0, meta_sectors=1024)
    content = pattern("origin", 2048)
    recorder.start(
        [bytes(512)] * 1024, [content[at : at + 512] for at in range(0, len(content), 512)]
    )
    family = Family(box, real=recorder.dest, sectors=2048)
    family.snap("P", 8, cow=recorder.meta)
    family.recorder = recorder
    return family


def end(family):
    """Ends the recording: what is not flushed is logged first."""
    snapshot, origin = family.snapshots[0], family.origin
    family.check(snapshot, origin)
    snapshot.flush()
    origin.flush()
    snapshot.remove()
    origin.remove()
    return order(family.recorder)


def test_order_of_an_origin_write(recorded):
    """The copy, a flush, the record with FUA, and only then the origin."""
    recorded.write(recorded.origin, 43, pattern("new", 2))
    words = end(recorded)
    assert words.index("data 2") < words.index("record FUA") < words.index("origin 43")
    assert "flush" in words[words.index("data 2") : words.index("record FUA")]


@pytest.mark.parametrize("sectors", [8, 3])
def test_order_of_a_snapshot_write(recorded, sectors):
    """A whole chunk: its data, a flush, the record. A part of one: the copy, a flush, the record,
    the data.
    """
    snapshot, data = recorded.snapshots[0], pattern("new", sectors)
    recorded.write(snapshot, 40, data)
    words = end(recorded)
    assert words.index("data 2") < words.index("record FUA")
    assert "flush" in words[words.index("data 2") : words.index("record FUA")]
    assert words.count("data 2") == (1 if sectors == 8 else 2)
    assert sectors == 8 or "data 2" in words[words.index("record FUA") :]
    assert not any(word.startswith("origin") for word in words)


@pytest.mark.parametrize("device", ["snapshot", "origin"])
def test_fua_reaches_the_disk(recorded, device):
    """To a chunk that has an exception, so that nothing else is written."""
    target = recorded.origin if device == "origin" else recorded.snapshots[0]
    recorded.write(recorded.snapshots[0], 40, pattern("before", 8))
    data = pattern("durable", 2)
    write_fua(target.path, 42, data)
    recorded.wrote(target, 42, data)
    recorder = recorded.recorder
    recorded.check(*recorded.snapshots, recorded.origin)
    for each in (*recorded.snapshots, recorded.origin):
        each.remove()
    where, at = ("dest", 42) if device == "origin" else ("meta", 18)
    found = [
        entry
        for entry in recorder.entries()
        if entry.where == where and entry.sectors[:1] == [(at, data[:512])]
    ]
    assert [entry.fua for entry in found] == [True]


@pytest.mark.parametrize("device", ["snapshot", "origin"])
def test_writes_wait_for_the_record(impl, box, device):
    """The COW device lies on two disks: one has header and area, the other the data. While the
    first is held, the copy is made and flushed, and nothing more. While the second is held, there
    is no record.
    """
    family = Family(box, cache=True)
    front, back = (Gate(box, box.ram(mib, cache=True)) for mib in (1, 8))
    snapshot = family.snap(
        "P", 8, cow=box.mapped(f"0 16 linear {front.dev} 0", f"16 8192 linear {back.dev} 0")
    )
    target = family.origin if device == "origin" else snapshot
    for turn, held in enumerate((front, back)):
        flushes = back.lower.stats().flushes
        held.hold()
        writer = family.writer(target, 43 + 80 * turn, pattern("new", 2))
        if held is front:
            wait.until(lambda: back.lower.stats().flushes > flushes, "the copy is flushed")
            assert_same(back.lower.read(0, 8), chunk_of(family.data, 5, 8), where="the copy")
        else:
            wait.until(lambda: in_flight(back) >= 1, "the copy is at the disk")
        assert len(cow.Store(front.lower.content()).records) == turn, "a record is there too early"
        assert not writer.done
        assert family.disk.content() == family.origin.expected
        held.release()
        writer.result()
    assert snapshot.exceptions() == 2
    family.check()
