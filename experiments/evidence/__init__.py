"""The evidence: experiments/PROTOCOL.md, run, judged and rendered.

problems.py    what is learned, known and fresh
entries.py     the methods
sweep.py       `python -m experiments sweep`: screen and final runs
judge.py       targets, steps to them, intervals, p-values, profiles
tables.py      the tables of sweep and report
"""
