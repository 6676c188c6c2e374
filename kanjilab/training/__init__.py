"""Training K arms at once over one frozen base: encoding, the step, schedules, checkpoints, diagnosis.

Start with `encoded.encode_dataset`, `loop.train` (a generator over steps) and `driver.run_training`, which
runs it to its end with a progress bar.
"""
