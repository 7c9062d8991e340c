"""The outbox on real databases: what is written, what a relay claims, and what reaches a real broker."""
