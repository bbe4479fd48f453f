"""Sparse training in the loops of other libraries, a file for each; none is imported with regrow itself."""
