"""The algorithms: pure functions over entries. Nothing here knows of modules, storage or devices."""
