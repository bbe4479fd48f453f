"""Sparse models in files: compressed, checked, without pickles, and exported for other programs."""
