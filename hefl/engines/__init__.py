"""How vectors are encrypted, summed and decrypted."""
