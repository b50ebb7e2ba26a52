"""How fast a backup is, and what it costs everybody else, as ratios to the reference algorithm in the same run.

`databases.py` makes what is backed up, `candidates.py` says what is compared, `rounds.py` runs each in turn,
`measure.py` asks curl and the kernel, `bystanders.py` are other requests and a writer, `scale.py` grows one thing
at a time, `table.py` prints. `reference.py` and `ceiling.py` are servers of their own, over `plain_http.py`.

    make bench SIZE=1000 JSON=bench.json        or, in tests/:  python -m benchmarks --size 1000 --json bench.json
"""
