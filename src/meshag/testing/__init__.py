"""The public testing kit: a caller in a few lines, to test a session, a connector or a whole mesh with."""

from meshag.testing.caller import TestCaller

__all__ = ["TestCaller"]
