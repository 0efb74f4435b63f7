"""The exercises of each lesson, one file per lesson: ``l02_transformer.py`` belongs to ``02_transformer.ipynb``."""
