"""Errors, run folders, files, plug-ins, statistics, processes. Nothing here knows about models."""
