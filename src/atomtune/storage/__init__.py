"""Adapters on disk: folders, their cards, several merged into one."""
