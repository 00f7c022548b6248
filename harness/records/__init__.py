"""What was measured, as it is kept: the schema of records, the store that loses none, and what they hold."""
