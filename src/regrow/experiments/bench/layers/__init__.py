"""Single layers: sparse kernels beside dense ones and other libraries."""
