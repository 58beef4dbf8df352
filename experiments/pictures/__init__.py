"""The parts of the commands images, evaluate, latent_walk, table1 and inception."""
