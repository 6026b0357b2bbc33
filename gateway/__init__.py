"""Rank 0: HTTP, text, scheduling. Nothing in here knows tensors."""
