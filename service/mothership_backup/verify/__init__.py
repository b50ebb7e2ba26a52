"""An archive -> a verdict: the only code that reads archives, and it believes none of their words unproven.

archive_file.py  a file or a stream -> an open archive
end_record.py    the end of the file: where its directory is
central.py       the directory: what it says of each entry
entry_names.py   their names: safe and unique
directory.py     the entries, read strictly: every byte belongs to one of them, or to the directory
claims.py        MANIFEST.json read back: what it claims to hold
contents.py      entries and claims held against each other, before any entry is unpacked
unpack.py        an entry -> its bytes, proved by length, CRC-32 and SHA-256
verdict.py       all of it: THE PAGE TO READ
scratch.py       private files for the databases that SQLite checks
inspection.py    what is in it, without proving it
"""
