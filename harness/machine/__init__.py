"""The machine that runs the measurements: its facts, its GPU, its memory allocator, and the output folders."""
