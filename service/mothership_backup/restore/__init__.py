"""An archive -> a data directory: all of it or nothing, and nothing that was there is lost.

restore.py    THE PAGE TO READ: the way of a restore, and of one that was interrupted
plan.py       which entry goes where, what it replaces, and by which way
holders.py    who has the databases open
staging.py    the new files, complete, beside the old ones
journal.py    DIR/.restore-in-progress: what is being done
swap.py       the new names for the old, each step safe to repeat, forwards and backwards
"""
