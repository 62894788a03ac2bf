"""Readouts: from features to the rates of one session's neurons."""
