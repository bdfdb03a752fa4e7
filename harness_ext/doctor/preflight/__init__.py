"""The doctor's second layer: training examples before training, adapters after it. Nothing is evaluated."""
