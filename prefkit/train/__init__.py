"""The trainer: preference pairs in, aligned model out.

Nothing is imported here, so that ``import prefkit.train`` costs nothing; each file imports torch for itself.
"""
