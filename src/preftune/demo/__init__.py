"""The offline first run: a small text world with a known true reward, and the whole path from SFT to the frontier."""
