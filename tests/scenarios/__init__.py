"""What happens to messages and callers when a broker fails: one fault at a time, under load, on the real thing."""
