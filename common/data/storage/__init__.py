"""Reading files: plain or in zip archives, json lines by index, pickles without code.

Knows nothing about what the files contain.
"""
