"""What was measured: the schema of records, the store that loses none, and what the records hold."""
