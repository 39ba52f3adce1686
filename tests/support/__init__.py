"""Shared by tests: private servers, fixtures, scenarios."""

import pytest

pytest.register_assert_rewrite("tests.support.engine_contract")  # so that its failures show values
