"""Learning rules, each a gradient and an `Algorithm`."""
