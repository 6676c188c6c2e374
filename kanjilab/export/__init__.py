"""What leaves kanjilab: LoRA files for other tools, merged pipelines, ComfyUI workflows, cards.

Start with `checkpoint.to_comfyui` and its neighbours.
"""
