"""Neural networks: convolution layers, generators and discriminators."""
