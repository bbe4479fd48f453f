"""Training: settings, presets, methods, the run, its checkpoints and its progress."""
