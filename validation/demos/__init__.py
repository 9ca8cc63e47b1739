"""Worked problems: methods beside a reference, each a command that prints a table and writes a page."""
