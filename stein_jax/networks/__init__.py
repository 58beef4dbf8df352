"""Layers, generators and discriminators."""
