"""From records to numbers: pure functions, which measure nothing and import no framework."""
