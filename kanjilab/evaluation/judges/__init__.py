"""The judges: they read a glyph's parts, layout, nearest characters, and whether it is well-formed.

The first judge (`radical_judge`) has no network and reads the left radical; judges A and B (`part_judge`) are two
small networks. A chooses, B reports; a score is never a loss. Start with `part_judge.load_judge`.
"""
