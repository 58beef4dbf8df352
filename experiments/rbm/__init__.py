"""What the experiments on the RBM are made of."""
