"""Metrics that need no downloaded network."""
