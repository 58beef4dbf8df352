"""What all experiments are made of."""
