"""From a character to a captioned image: dictionary, radicals, components, captions, drawing, image folders.

Only this machine's files are read; the network is asked for KanjiVG's strokes alone, and only when they are
wanted. Start with `build.build_dataset`, which selects, captions, draws and splits, and
`image_folder.open_dataset`, which reads any folder of images with a `metadata.csv`.
"""
