"""One file per model, named after its paper."""
