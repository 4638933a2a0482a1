"""BFCL v4 multi-turn: 800 tasks of the Berkeley Function Calling Leaderboard in a safe world of our own."""
