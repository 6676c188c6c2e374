"""Pictures from arrays: strips, animations, charts.

Nothing here samples or scores; the caller brings images and numbers. Start with `strip.save_strip`.
"""
