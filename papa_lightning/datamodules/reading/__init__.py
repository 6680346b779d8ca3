"""Rows as they are in files and on the hub."""
