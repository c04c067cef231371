"""Fixtures that the tests of hostler and of the plugins in this tree share live in tests/support."""

pytest_plugins = ["support.fixtures", "support.weights"]
