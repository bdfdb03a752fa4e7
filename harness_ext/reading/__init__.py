"""One reader for each kind of input: files, JSON, YAML.

Nothing but `InputError` comes out of them, nothing blocks, and nothing grows without end.
"""
