"""Modules: which weights may be sparse, and turning a model sparse, dense again, or into a table."""
