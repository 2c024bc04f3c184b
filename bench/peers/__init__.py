"""Peers side by side: what other tools choose on the same samples, groups, formats and bits, before one judge."""
