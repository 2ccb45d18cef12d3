"""Attacks on the promises of SECURITY.md and on runs that are cut off: kills, races, damage, full disks, bad requests.

``tests/attacks`` tries some of them at each commit; ``python -m benchmarks.attacks`` tries many, and keeps the results.
"""
