"""What experiments.known_density is made of: truths, students, and trials of rules."""
