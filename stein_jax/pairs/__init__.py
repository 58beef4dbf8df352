"""Sums over all pairs of points, in tiles, and order statistics of distances."""
