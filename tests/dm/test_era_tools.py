"""era: the tools and C open the metadata, and dm-rust opens theirs."""

import pytest

from lib import eras, modules
from lib.box import pattern


def test_tools(impl, pair, rng):
    """era_check, era_dump, era_restore and era_repair agree with dm-rust, which opens what they
    write.
    """
    spare = pair.box.ram(1)
    era = pair.era()
    written = {}
    for now in range(1, 8):
        for block in rng.sample(range(1024), 5):
            era.write(block * 8, pattern("a", 8))
            written[block] = now
        era.checkpoint()
    era.remove()
    image = eras.check(pair.meta, spare)
    assert {block: at for block, at in enumerate(image.eras()) if at} == written
    # If all eras are digested C leaves an empty tree, for which era_invalidate ignores the array.
    assert image.archived or impl == "c"
    for since in (1, 4, 7) if image.archived else ():
        assert eras.invalidate(pair.meta, since) == {
            block for block, at in written.items() if at >= since
        }
    eras.tool("pdata_tools", "era_repair", "-i", pair.meta.path, "-o", spare.path)
    pair.meta = spare
    era = pair.era()
    assert era.era == 9 and era.since(1) == set(written)
    era.remove()
    eras.check(spare)


def test_live_device(pair):
    """While the device is live the tools read a snapshot and nothing else."""
    era = pair.era()
    era.write(0, pattern("a", 8))
    assert eras.tool("era_check", pair.meta.path, check=False).returncode
    era.take()
    assert eras.invalidate(pair.meta, 1, snapshot=True) == {0}


@pytest.mark.only("rust")
def test_snapshot_of_a_quiet_device(pair):
    """Nothing was written for long, and all eras are digested: old blocks are in the list all the
    same. The tree is never empty.
    """
    era = pair.era()
    era.write(40, pattern("a", 8))
    for _ in range(6):
        era.checkpoint()
    era.wait_digested()
    era.take()
    assert eras.invalidate(pair.meta, 1, snapshot=True) == {5}
    assert eras.invalidate(pair.meta, 2, snapshot=True) == set()
    era.drop()
    era.remove()
    assert eras.invalidate(pair.meta, 1) == {5}


@pytest.mark.only("rust")
def test_digestion(pair, rng):
    """Fifty eras: nothing is forgotten on the way, and in the end all but the newest are
    digested.
    """
    era = pair.era()
    written = {}
    for _ in range(50):
        now = era.era
        for block in rng.sample(range(1024), 3):
            era.write(block * 8, pattern("a", 8))
            written[block] = now
        era.checkpoint()
        if now % 7 == 0:
            era.take()
            image = eras.Metadata(pair.meta.content(), era.look().snapshot, sums=False)
            assert {block: at for block, at in enumerate(image.eras()) if at} == written
            era.drop()
    era.wait_digested()
    era.remove()
    image = eras.check(pair.meta)
    assert {block: at for block, at in enumerate(image.eras()) if at} == written
    assert len(image.archived) <= 2
    assert {block for block, at in enumerate(image.array) if at} <= set(written)


@pytest.mark.only("rust")
def test_space_is_given_back(pair):
    """After snapshots, eras and digestion as many blocks are in use as before."""
    era = pair.era()
    era.write(0, pattern("a", 8))
    era.checkpoint()
    era.checkpoint()
    era.wait_digested()
    era.suspend()
    era.resume()
    era.wait_digested()
    before = era.look().used
    for n in range(10):
        era.write(n * 800, pattern("a", 8))
        era.take()
        era.checkpoint()
        era.drop()
    era.checkpoint()
    era.wait_digested()
    era.suspend()
    era.resume()
    era.wait_digested()
    assert era.look().used <= before + 1


HANDS = 100  # C and dm-rust alternately


@pytest.mark.both
@pytest.mark.phases("c-again")
def test_c_and_dm_rust_alternate(impl, box, rng, rust_module):
    """C and dm-rust open the same metadata a hundred times alternately, each with some work;
    nothing is forgotten.
    """
    pair = eras.Pair(box)
    written, now = {}, 0
    modules.unload_c()
    hands = (
        modules.Swift(modules.c_file("era"), modules.C_MODULES["era"]),
        modules.Swift(rust_module, modules.RUST_MODULE, "targets=era"),
    )
    hands[1].load()
    try:
        for turn in range(HANDS):
            hands[turn % 2 - 1].unload()
            hands[turn % 2].load()
            era = pair.era(name="turns")
            assert era.era > now
            now = era.era
            for _ in range(rng.randrange(4)):
                for block in rng.sample(range(1024), rng.randrange(4)):
                    era.write(block * 8, pattern("a", 8))
                    written[block] = now
                if rng.random() < 0.3:
                    era.take()
                    era.drop()
                    now = era.era
                else:
                    now = era.checkpoint()
            now = era.era
            era.remove()
            if turn % 20 == 19:
                image = eras.check(pair.meta)
                assert {block: at for block, at in enumerate(image.eras()) if at} == written
    finally:
        modules.unload(modules.RUST_MODULE)
        modules.use("c", rust_module)


@pytest.mark.both
@pytest.mark.phases("c-again")
def test_c_reads_sparse_bitsets(impl, box, rng, rust_module):
    """Bitsets with a shared empty block, which only dm-rust makes: C writes to them, and digests
    them.
    """
    pair = eras.Pair(box, mib=1024, meta_mib=8)
    modules.use("rust", rust_module)
    try:
        era = pair.era()
        written = {block: 1 for block in rng.sample(range(262_144), 20)}
        for block in written:
            era.write(block * 8, pattern("a", 8))
        era.remove()
        modules.use("c", rust_module)
        era = pair.era()
        for block in rng.sample(range(262_144), 20):
            era.write(block * 8, pattern("a", 8))
            written[block] = 2
        era.checkpoint()
        assert era.since(1) == set(written)
        era.remove()
        assert {block: at for block, at in enumerate(eras.check(pair.meta).eras()) if at} == written
    finally:
        modules.use("c", rust_module)
