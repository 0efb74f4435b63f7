"""The parts that every model shares."""
