"""From a character to a captioned image: dictionary, radicals, components, captions, drawing, image folders.

Start with `build.build_dataset`, which selects, captions, draws and splits characters, and with
`image_folder.open_dataset`, which reads any folder of images that has a `metadata.csv`. Nothing here needs the
network but `kanjivg.KanjiVG.open`, which downloads the stroke files if they are not on this machine.
"""
