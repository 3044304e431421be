"""Retraining what `data/` ships: `python -m labkit.training PART`, `make train`.

Modules, in the order in which the parts are trained:

    parts       the recipe: seeds, sizes and steps of every shipped model
    loop        the one training loop; it resumes where it was stopped
    vae         PortraitVAE
    clip        PortraitCLIP
    reader      AttributeReader
    unet        PortraitSD's U-Net
    flow        PortraitFlow's transformer
    export      the trained parts as files of `data/`, with checksums
    evaluate    the numbers of the model cards, and the picture of the README
"""
