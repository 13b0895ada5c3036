"""The persistent store of a snapshot: how much fits on a COW device, and what it holds when it is
full.
"""

from errno import EIO

import pytest

from lib import cow, wait
from lib.box import pattern
from lib.stores import Bench, dirty_image


def fill_up(bench, room):
    """Makes exceptions until the store is full, the last ones one at a time; returns their
    number.
    """
    size, count = bench.model.size, max(room - 3, 0)
    if count:
        bench.write(0, pattern("new", count * size))
    for count in range(count, room + 3):
        try:
            bench.snap.write(count * size, pattern(f"new {count}", 1))
        except OSError as error:
            assert error.errno == EIO
            return count
        bench.model.write(count * size, pattern(f"new {count}", 1))
    raise AssertionError("the store is larger than it can be")


def check_full(bench, room, same, log):
    """Fills a store to the last chunk, and writes one chunk more."""
    kind = bench.kind
    mark = log.mark()
    bench.start()
    assert fill_up(bench, room) == room
    lines = log.lines(mark)
    assert not any("beyond end of device" in line for line in lines), lines
    if kind == "P":
        assert bench.snap.status() == "Invalid"
        wait.until(lambda: bench.snap.event == 1, "an event")
        assert any("Invalidating snapshot: Unable to allocate exception." in line for line in lines)
        bench.model.image[4] = 0
    else:
        assert bench.snap.status() == "Overflow"
        assert any("Snapshot overflowed: Unable to allocate exception." in line for line in lines)
        bench.check_shown()
        with pytest.raises(OSError) as error:
            bench.snap.write(0, pattern("a", 1))
        assert error.value.errno == EIO
    same([line for line in lines if "device-mapper: " in line])
    bench.stop()
    bench.check_image()
    bench.start()
    assert bench.snap.status() == ("Invalid" if kind == "P" else bench.model.status())
    if kind == "PO":
        bench.check_shown()
    bench.stop()


FULL = {}  # models of what dm-rust leaves full, for C to open


def exact(size, areas, more, odd=0):
    """Sectors of a device that ends `more` chunks and `odd` sectors after area `areas`."""
    return (cow.area_at(areas, size) + more) * size + odd


@pytest.mark.parametrize("kind", ["P", "PO"])
@pytest.mark.parametrize(
    "size, areas, more, odd",
    [
        (1, 1, -1, 0),
        (1, 1, 1, 0),
        (1, 2, 2, 0),
        (8, 0, 1, 0),
        (8, 0, 4, 3),
        (8, 1, -1, 7),
        (8, 1, 1, 0),
    ],
)
def test_store_is_filled_to_the_last_chunk(impl, box, log, same, kind, size, areas, more, odd):
    """A store that ends just before or after an area, filled by writes to the snapshot."""
    sectors = exact(size, areas, more, odd)
    bench = Bench(box, size, pattern("origin", sectors + 4 * size), dirty_image(sectors), kind)
    check_full(bench, cow.capacity(sectors // size, size), same, log)


@pytest.mark.only("rust")
@pytest.mark.parametrize("kind", ["PO", "P"])
@pytest.mark.parametrize("size, areas, odd", [(1, 1, 0), (1, 2, 0), (8, 1, 0), (8, 1, 5)])
def test_chunk_before_a_missing_area_stays_free(impl, box, log, same, kind, size, areas, odd):
    """The last data chunk would fill an area, and the device ends after it: it stays free, because
    the successor of a full area must exist. C writes beyond the end, and the snapshot becomes
    invalid even with overflow support.
    """
    sectors = exact(size, areas, 0, odd)
    bench = Bench(box, size, pattern("origin", sectors + 4 * size), dirty_image(sectors), kind)
    room = cow.capacity(sectors // size, size)
    assert room == areas * cow.per_area(size) - 1
    check_full(bench, room, lambda _: None, log)
    if kind == "PO":
        FULL[size, areas, odd] = bench.model


@pytest.mark.phases("c-again")
@pytest.mark.both
@pytest.mark.parametrize("size, areas, odd", [(1, 1, 0), (1, 2, 0), (8, 1, 0), (8, 1, 5)])
def test_c_opens_a_full_store(impl, box, size, areas, odd):
    model = FULL[size, areas, odd]
    bench = Bench(box, size, model=model).start()
    assert bench.snap.status() == model.status()
    bench.check_shown()


@pytest.mark.parametrize("size, before, after", [(1, 20, 80), (1, 33, 35), (8, 100, 300)])
def test_growing_device_gives_room(impl, box, log, same, size, before, after):
    """The COW device grows under a live snapshot: the total grows at once, and with it the room."""
    bench = Bench(box, size, pattern("origin", (after + 9) * size), dirty_image(after * size), "PO")
    lower = bench.store
    grown = f"0 {after * size} linear {lower.dev} 0"
    bench.store = box.mapped(f"0 {before * size} linear {lower.dev} 0")
    bench.start()
    room, most = cow.capacity(before, size), cow.capacity(after, size)
    bench.take(range(room))
    status = bench.snap.status()
    assert status == bench.model.status().replace(f"/{after * size} ", f"/{before * size} ")
    bench.store.swap(grown)
    assert bench.snap.status() == bench.model.status()
    bench.take(range(room, most))
    with pytest.raises(OSError):
        bench.snap.write(most * size, bytes(512))
    same((status, bench.snap.status()))
    assert bench.snap.status() == "Overflow"
    bench.check_shown()
    bench.stop()
    bench.store = lower
    bench.check_image()
