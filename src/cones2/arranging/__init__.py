"""Layouts without drawing: from words, from what a prompt says, or from nothing but its order."""
