"""Encoding models: tensors in, rates of neurons out. Knows torch and einops only."""
