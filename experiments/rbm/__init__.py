"""The parts of the commands that train the RBM."""
