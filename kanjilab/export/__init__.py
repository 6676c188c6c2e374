"""What leaves kanjilab: LoRA files for other tools, merged pipelines, ComfyUI workflows, cards.

Start with `conversion.to_comfyui` and its neighbours.
"""
