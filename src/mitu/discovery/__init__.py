"""Service discovery: which instances there are, how they are, and what they speak.

`provider.py` is the interface, one file each implements it; `watcher.py` keeps a service's state through outages,
`table.py` holds what is known of all, `service.py` makes the gateway act on it.
"""
