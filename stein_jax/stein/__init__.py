"""Stein directions and discrepancies of particles."""
