"""The machine that is measured on: its facts, its GPU, its allocator, and the folders written into."""
