"""The shared core: backbones, autoencoders, conditioning, diffusion, training, data, metrics, media.

It knows no task by name.
"""
