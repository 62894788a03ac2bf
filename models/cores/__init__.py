"""Cores: from video to features in space and time."""
