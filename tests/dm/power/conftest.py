"""What tests of power cuts need besides tests/dm/conftest.py."""

import pytest

# Assertions of the helpers are explained like those of the tests.
pytest.register_assert_rewrite("snap_work", "snap_judge")
