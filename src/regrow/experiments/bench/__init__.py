"""Measuring layers: correctness first, then time, sparse beside dense and beside other libraries in one process."""
