"""Everything on disk: artifacts, checkpoints, results, downloads, and reading files that others may have written."""
