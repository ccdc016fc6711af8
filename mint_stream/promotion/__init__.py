"""When a candidate becomes production: rules that turn what was measured into a verdict. Pure: no clock, no chance, no Kafka, no torch."""
