"""What the pools cost beside what else there is: `make bench`. `docs/explanation/performance.md` tells how it measures.

A `Case` (`case.py`) is one thing to do, at one place (`places.py`: a broker, or none), with its contenders. Each case
runs in a process of its own (`child.py`), whose rounds are interleaved contender by contender (`measure.py`).
`goals.py` is what is to be reached, `report.py` and `svg.py` write it down, `instructions.py` counts instructions.
"""
