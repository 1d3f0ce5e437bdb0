"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg."""
