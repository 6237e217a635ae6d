"""Copies that are at the target already become the start of a first copy."""
