"""The reader: a child process, one per backup, and the only code that opens a source.

It is started by backup.py, takes its request on stdin and answers in frames on stdout; see __main__.py.
"""
