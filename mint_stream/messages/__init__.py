"""Every record that crosses Kafka. The only schemas of the project."""
