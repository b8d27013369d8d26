"""Evaluation-only instruments, one file each: what a group buys, how far it sees, what it decodes.

``table.py`` always runs; the others are chosen by name.
"""
