"""What type checkers know of the public calls: files that are checked and never run. ``python -m tests.typed``"""
