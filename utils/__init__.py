"""The small module behind the three notebooks: data, models, losses, metrics, training and pictures."""
