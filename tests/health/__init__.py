"""Probes of a process, on a real broker that is alarmed, frozen and killed."""
