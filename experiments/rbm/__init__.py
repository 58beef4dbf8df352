"""The parts of the commands that train the RBM.

settings            the flags: the model, and how it is trained
problem             the data, the model and its start, and its evaluation
runs                `Run`, one curve, and the inputs of its learning rule
methods             all methods by name
energy_methods      the methods that train an energy alone
generator_methods   the methods that train an energy and a generator
generators          samples and scores of the generators
training            one training run
statistics          means and standard deviations over seeds
tables              tables of a summary.json
results             the files in --workdir
timed_curves        likelihood against seconds, from finished runs
torch_peer          contrastive divergence in PyTorch
torch_training      trains with torch_peer, and measures the time of a step
"""
