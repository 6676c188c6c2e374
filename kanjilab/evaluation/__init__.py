"""What was drawn, in numbers: scores with intervals, the five criteria of a new kanji, controls, judges.

Start with `scoring.score_prompts` for one run and `criteria` for what makes a glyph a well-formed new kanji.
"""
