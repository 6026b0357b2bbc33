"""Ranks 1..P: one pipeline stage each. Nothing in here knows HTTP, text or policies."""
