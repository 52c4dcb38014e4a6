"""A run on the host: its loop, log, curves, and what it says of itself."""
