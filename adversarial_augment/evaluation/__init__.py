"""What each evaluation measures, of which images, and what is known of it already."""
