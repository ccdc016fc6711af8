"""Turns generations into completions: continuous batching of many adapters over one resident base."""
