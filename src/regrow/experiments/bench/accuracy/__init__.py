"""When dense and sparse training reach which accuracy."""
