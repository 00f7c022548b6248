"""A run: its session, the schedule of its jobs, and the worker processes that carry them out."""
