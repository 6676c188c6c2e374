"""Networks and their parts: loading a base, reading captions, adapters, sampling, memory.

A base is a frozen latent-diffusion model, a U-Net or a rectified flow, behind one interface. Start with
`loading.load_base` and `sampling.sample`.
"""
