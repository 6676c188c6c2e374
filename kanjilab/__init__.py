"""Study how text-to-image diffusion models learn the parts and meanings of kanji."""

__version__ = "0.1.0"
