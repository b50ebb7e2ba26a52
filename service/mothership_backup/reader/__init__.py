"""The reader: a child process, one per backup, and the only code that opens a source.

It is started by child.py, takes its request on stdin and answers in frames on stdout; see __main__.py.

Its start is most of a small backup, so nothing that it loads imports `typing` at run time (7 ms, with the classes
that it makes): what type checkers need stands under a `TYPE_CHECKING` of our own.
"""
