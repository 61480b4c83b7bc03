"""The small module behind the three notebooks: data, models, losses, metrics, training and pictures."""

from utils.memory import keep_freed_memory

keep_freed_memory()
