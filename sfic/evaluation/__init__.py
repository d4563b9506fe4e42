"""Measuring codecs: faces through them, before judges that no loss has seen, as a report.

    dataset -> codecs, vvc -> judges, metrics -> run (kept by store) -> curves -> report, plots

Nothing here is needed to encode or decode.
"""
