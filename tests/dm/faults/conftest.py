"""What tests under faults need besides tests/dm/conftest.py."""

import re

import pytest

from lib import kmsg


@pytest.fixture(scope="module", autouse=True)
def traces_of_allocations():
    """The kernel writes a call trace when vmalloc fails, which is not a complaint in these
    tests.
    """
    before = kmsg.BAD
    kmsg.BAD = re.compile(before.pattern.replace("|Call Trace:", ""))
    assert kmsg.BAD.pattern != before.pattern
    yield
    kmsg.BAD = before
