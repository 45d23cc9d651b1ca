"""What brings events in: files and pipes for now."""
