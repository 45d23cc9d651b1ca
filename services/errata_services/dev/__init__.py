"""What a person needs on their own machine: real servers from installed programs, for tests and for trying things."""
