"""The resident base and what serving and training share around it: LoRA sites, attention, packed passes."""
