"""One file per schema version, oldest first. A released file is never edited."""
