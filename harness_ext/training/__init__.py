"""LoRA training on any task with a training split."""
