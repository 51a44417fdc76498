"""Residuals: what a subject is, and the file that keeps it."""
