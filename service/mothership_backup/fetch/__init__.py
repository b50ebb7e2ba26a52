"""An archive of a service -> a file that is whole, or the one that was there before.

names.py     FILE with its {words} -> a file's name, and the pattern of its siblings
target.py    URL and token, before anything is asked
transfer.py  one try: GET -> FILE.part
part.py      FILE.part: private, locked, gone at the end unless it was kept
retry.py     which failures are tried again, and when
keep.py      older files that are not needed any more
ping.py      a monitor hears of it
fetch.py     all of it: THE PAGE TO READ
"""
