"""What processes that train together send each other in a step, and how long it takes, sparse beside dense."""
