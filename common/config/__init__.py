"""The configuration: sections and fields of all tasks, yaml files, and checks of values and combinations.

Keys of one task belong to its `config.py`.
"""
