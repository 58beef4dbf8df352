"""What several commands of `experiments` have in common."""
