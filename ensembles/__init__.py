"""Ensembles: pick, average, score and publish members."""
