"""The contract is imported by the files that run it, so its asserts are rewritten here."""

import pytest

pytest.register_assert_rewrite("tests.conformance.contract")
