"""Times and memory on the device at hand: ``python -m hybrid_lm.bench {mixers,kernels,step}``.

Every command prints a table, and writes it with the device, date and versions as JSON and markdown
where ``--output`` says.
"""
