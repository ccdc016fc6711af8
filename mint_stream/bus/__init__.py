"""Kafka, as this project uses it: everything that reads or writes a topic below the workers."""
