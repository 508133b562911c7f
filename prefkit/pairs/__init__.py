"""Half one: raw ratings -> preference pairs. Start reading at `build.py`. Never imports torch."""
