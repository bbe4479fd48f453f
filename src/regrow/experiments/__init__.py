"""Experiments: data, models, training and the command line, on top of the library."""
