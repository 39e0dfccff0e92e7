"""Service discovery: which instances there are, how they are, and what they speak.

`provider.py` is the interface, one file each implements it; `tracked.py` keeps an upstream's state through outages,
`following.py` runs what keeps track of it, `plan.py` says what all of that comes to under one configuration, and
`service.py` makes it live.
"""
