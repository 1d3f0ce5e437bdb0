"""Command lines that several tasks share: flags, set-up, and exit statuses.

The commands themselves are in the folders of the tasks; what they compute is in the packages below this one.
"""
