"""Networks of our own in Flax and in PyTorch, equal by construction: what the verifier is tried on.

Each module has `flax_model`, `torch_model`, `inputs`, all with the keywords of `CONFIGURATION`,
and `random_configuration`. Images come as [N, C, H, W], as PyTorch takes them.
"""

#: The modules.
PAIRS = ("resnet", "vit", "gpt", "lstm", "unet", "convnet")
