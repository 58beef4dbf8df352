"""Commands that reproduce the results of the paper."""
