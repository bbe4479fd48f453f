"""What training one layer holds in memory."""
