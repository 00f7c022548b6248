"""Tests of the harness by itself: simulated machines of known truth, and real programs against themselves."""
