"""How many of timm's architectures a student can be derived of."""
