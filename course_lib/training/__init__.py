"""One loop, averages, checkpoints and presets."""
