"""Turning a model sparse and dense again: which weights, which storage, and what the model then looks like."""
