"""Noising, objectives, samplers and guidance, in one direction of time: t = 0 is data, t = 1 is noise."""
