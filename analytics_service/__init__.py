"""Basic layers in, machine-task results out. This service never asks for a higher layer."""
