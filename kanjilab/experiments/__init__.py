"""A question and its finding: the demo, ablation studies, re-invention, pairs of radicals.

An experiment trains through `training`, scores through `evaluation`, and keeps tables and a report. Start with
`demo` for one run and `designs.make_study` for the studies.
"""
