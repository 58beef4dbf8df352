"""The parts of the commands images, evaluate, latent_walk, table1 and inception.

model_settings     the flags of the networks and algorithms
models             the networks and algorithms by name
results            the records, figures and table of experiments.images
sources            encoded images: a folder, an lmdb, or tfds
decoding           from an encoded image to pixels
square_images      whole data sets of square images
streams            images in random order, decoded during the training
prefetching        elements made by threads before they are used
saved_generators   saves and loads trained generators
resnet             trains and stores the ResNets that classify images
scores             scores that use a classifier
inception          scores that use the Inception network
testing_accuracy   test accuracy of a ResNet trained on generated images
figure2            the table of figure 2
"""
