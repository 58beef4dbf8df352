"""Measurements of speed: ratios to another library, or to a lower bound of the time."""
