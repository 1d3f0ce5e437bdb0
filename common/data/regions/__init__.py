"""The regions of images: one type, its file formats, and readers for datasets and for users' files.

Computing regions and features belongs to `common.extraction`.
"""
