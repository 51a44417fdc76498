"""Layouts: which subject belongs where."""
