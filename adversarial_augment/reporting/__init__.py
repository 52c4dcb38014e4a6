"""The parts of a report: what a run's folder holds, its tables and charts, and the page. Nothing here imports JAX."""
