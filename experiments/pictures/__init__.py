"""What the experiments on pictures are made of."""
