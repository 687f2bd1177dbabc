"""What is left of a run: records in files, known by their content."""
