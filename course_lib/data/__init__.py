"""Captioned Moving MNIST: scenes first, then pixels and words derived from the same scene."""
