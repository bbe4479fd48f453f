"""Whole training steps of networks, sparse beside dense."""
