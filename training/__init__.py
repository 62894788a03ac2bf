"""One run: from a RunSpec to a scored, tracked, resumable checkpoint."""
