"""Training: the updater, and where what it knows of absent weights comes from."""
