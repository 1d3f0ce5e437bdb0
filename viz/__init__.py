"""Attention maps of trained models and the page that shows them."""
