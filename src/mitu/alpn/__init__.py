"""The order of a listener's protocols, learned from what stands behind them.

`ranking.py` defines it, `sources.py` says whose word counts for which protocol, `steady.py` keeps it from flapping and
`decisions.py` remembers each change.
"""
