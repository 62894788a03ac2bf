"""Recordings of visual cortex: read, simulate, convert, and feed as batches of clips."""
