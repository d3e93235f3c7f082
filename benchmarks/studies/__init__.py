"""Questions about FasterViT answered once, by a command each, with committed results."""
