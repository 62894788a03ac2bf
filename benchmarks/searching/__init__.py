"""Searches of noisy surfaces whose optimum is known; ``benchmarks/search.py`` runs them."""
