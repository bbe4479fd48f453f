"""Modules: layers with a sparsely stored weight, and what follows their layout."""
