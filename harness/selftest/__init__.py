"""The harness measured by itself: simulated machines whose truth is known, and real programs against themselves."""
