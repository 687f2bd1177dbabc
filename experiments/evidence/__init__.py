"""The evidence: experiments/PROTOCOL.md, run, judged and rendered.

problems.py    what is learned, known and fresh
entries.py     the methods
sweep.py       `python -m experiments sweep`: screen and final runs
judge.py       targets, steps to them, intervals, p-values, profiles
seconds.py     `sweep --seconds`: a step of each method alone
job.py         which of them is asked for
outcomes.py    every method on a problem, held against its target
tables.py      the tables of sweep and report
figures.py     profiles; curves and rates of a problem
stored.py      results in a file
report.py      `python -m experiments report`
page.py        Markdown as one page of HTML
"""
