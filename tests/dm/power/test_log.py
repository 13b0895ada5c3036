"""The log itself: what was acknowledged to a slice as durable is durable in the log."""

from lib.logwrites import DISCARD, FLUSH, FUA, ZERO, Entry, Recorder, in_time, tagged

ROUNDS = 60


def test_flushes_of_all_slices_at_once(box):
    """Whichever flush takes a write along, and whichever ends first."""
    rec = Recorder(box, 4, other=128)
    rec.start(*([ZERO] * sectors for _, sectors in rec.slices.values()))

    def write(name):
        for n in range(ROUNDS):
            rec.devices[name].write(n, tagged(n, ZERO))
            rec.devices[name].flush()
            rec.mark(f"{name}:{n}")

    for thread in [box.background(write, name) for name in rec.slices]:
        thread.result()
    pending, durable, marks = {name: set() for name in rec.slices}, set(), 0
    for entry in rec.entries():
        if entry.mark is not None:
            name, n = entry.mark.split(":")
            assert (name, int(n)) in durable, f"{entry}, and it stands further behind"
            marks += 1
        elif entry.flush:
            durable |= pending[entry.where]
            pending[entry.where] = set()
        else:
            pending[entry.where].add((entry.where, entry.sectors[0][0]))
    assert marks == ROUNDS * len(rec.slices)


def entry(flags, where, *sectors):
    return Entry(flags, where, [(sector, ZERO) for sector in sectors])


def test_overtaken_flush():
    """The first flush of "a" takes the writes of "b", and a later flush of "b" ends before it."""
    write, again, late = entry(0, "b", 7), entry(DISCARD, "b", 7), entry(0, "b", 9)
    mine, flush_a, flush_b, record = (
        entry(0, "a", 1, 2),
        entry(FLUSH, "a"),
        entry(FLUSH, "b"),
        entry(FUA, "b", 8),
    )
    last = entry(FLUSH, "b")
    log = [flush_b, record, write, mine, again, flush_a, late, last]
    own = {"a": [mine, flush_a], "b": [write, again, flush_b, record, late, last]}
    assert in_time(log, own) == [write, again, flush_b, record, mine, flush_a, late, last]
    # Writes the same sectors again, after the flush was sent.
    own["b"] = [write, flush_b, record, again, late, last]
    assert in_time(log, own) == [write, flush_b, record, mine, again, flush_a, late, last]
