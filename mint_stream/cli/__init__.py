"""The command line: one file a command group. It prints and never decides, and helps without importing torch or Kafka."""
