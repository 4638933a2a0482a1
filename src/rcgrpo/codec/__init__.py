"""Chat messages and tool schemas <-> token ids."""
