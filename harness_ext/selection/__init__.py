"""Scores checkpoints in training by the evaluator itself, and hands these scores to the training."""
