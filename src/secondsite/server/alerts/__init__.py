"""Telling people what happened: channels, rules, and messages that are jobs."""
