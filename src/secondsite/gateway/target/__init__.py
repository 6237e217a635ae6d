"""The target's side: who may write what, the journals' upkeep and verification, the images below them."""
