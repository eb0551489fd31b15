"""Weights -> numbers: features, k-NN, linear and SVM probes, labelled data for them."""
