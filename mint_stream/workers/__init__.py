"""What each role does with its records."""
