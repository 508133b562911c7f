"""One module a dataset format, each with one function of its own name: a raw row -> prompts with their rated answers.

A source takes one decoded row, typed by the annotation of its first parameter (a msgspec Struct that names the
fields it needs, or `dict`), and yields `Rated` prompts; it raises `BadRow` where the row is not what its format
promises. Its keyword-only parameters are the options of `[[build.inputs]]`.
"""
