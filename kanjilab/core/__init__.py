"""What every other room uses: settings of a training, streams of random numbers, files, progress, run folders.

Nothing here knows of kanji or of networks. Start with `config.Arm`, the settings of one training, and
`run_folder.RunFolder`, where everything of a run is kept.
"""
