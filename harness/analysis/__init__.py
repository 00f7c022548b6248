"""Analysis of records: pure functions that measure nothing and import no framework."""
