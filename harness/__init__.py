"""The study harness: from a study to a report, one step a module. Imports no framework."""
